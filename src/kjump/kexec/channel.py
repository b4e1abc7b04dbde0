"""The channel between the first kernel (A) and its resident peers: the mailbox page and a parcel in each direction.

Layout of its 2 MiB (little endian; offsets in bytes):

    0x000000  4 KiB             the mailbox (see mailbox.py)
    0x001000  1 MiB less 4 KiB  the parcel from A to the peer: an order
    0x100000  1 MiB less 4 KiB  the parcel from the peer to A: the report

A parcel:

    0x00  8 bytes  magic "KJPARCL1"
    0x08  u64      sequence number of A's order; the answer repeats it
    0x10  u32      length of the order or report
    0x14  u32      length of the message
    0x18  ...      order or report, UTF-8 JSON; behind it the message, any bytes
"""

from __future__ import annotations

import json
import mmap
import struct
from dataclasses import dataclass, field

from kjump.errors import FormatError, UsageError
from kjump.formats.record import JsonObject, Record
from kjump.gates import pack_page_list
from kjump.kexec import mailbox
from kjump.kexec.mailbox import Outcome
from kjump.kexec.physical import map_physical
from kjump.memory import PAGE_SIZE

SIZE = 2 << 20
_ORDER_AT = 0x1000
_ANSWER_AT = 0x100000
_ROOM = 0xFF000
_MAGIC = b"KJPARCL1"
_HEADER = struct.Struct("<8sQII")


@dataclass(frozen=True)
class Parcel:
    """An order or a report (`content`, a JSON object) and a `message` of bytes; `sequence` is the order's number."""

    sequence: int
    content: JsonObject = field(default_factory=dict)
    message: bytes = b""

    def pack(self) -> bytes:
        """Return it as bytes; UsageError when it is larger than the channel's space for a parcel."""
        text = json.dumps(self.content, separators=(",", ":")).encode()
        room = _ROOM - _HEADER.size - len(text)
        if len(self.message) > room:
            raise UsageError(f"a message of {len(self.message)} bytes is too long: {max(room, 0)} go into one switch")
        return _HEADER.pack(_MAGIC, self.sequence, len(text), len(self.message)) + text + self.message

    @classmethod
    def unpack(cls, data: bytes) -> Parcel:
        """Decode what `pack` returned, from the beginning of `data`; FormatError when it is damaged."""
        if len(data) < _HEADER.size:
            raise FormatError(f"a parcel has at least {_HEADER.size} bytes, not {len(data)}")
        magic, sequence, text_length, length = _HEADER.unpack_from(data)
        end = _HEADER.size + text_length + length
        if magic != _MAGIC or end > len(data):
            raise FormatError("there is no parcel in the channel (no magic, or longer than its room)")
        text = data[_HEADER.size : _HEADER.size + text_length]
        return cls(sequence, Record.parse(text, "the parcel in the channel").others(), data[end - length : end])


@dataclass(frozen=True)
class PageList:
    """Pages that the gate copies: (physical address of the source, physical address of the destination).

    `channel_address` is the physical address of the channel, in which the list travels.
    """

    channel_address: int
    pages: tuple[tuple[int, int], ...]

    def pack(self) -> bytes:
        """Return it in the gate's format (`gates.layouts.PAGE_LIST`); UsageError when the channel is too small."""
        packed = pack_page_list((source, destination, 1) for source, destination in self.pages)
        if len(packed) > _ROOM:
            raise UsageError(
                f"kernel and initrds are too large to be started anew: a list of {len(self.pages)} scattered pages "
                "does not fit into the channel"
            )
        return packed


class Channel:
    """Either end of the channel, in memory that both kernels map."""

    def __init__(self, memory: mmap.mmap | bytearray, cookie: bytes) -> None:
        """Use `memory`, SIZE bytes; its mailbox begins with `cookie` once an order has been posted."""
        self._memory = memory
        self.cookie = cookie

    @classmethod
    def at_physical(cls, address: int, cookie: bytes) -> Channel:
        """Map A's channel, at physical `address`, from a peer, through /dev/mem; FormatError unless `cookie` is there.

        HostError when the kernel refuses.
        """
        memory = map_physical(address, SIZE, writable=True)
        if memory[: mailbox.COOKIE_SIZE] != cookie:
            raise FormatError(f"there is no channel with the expected cookie at physical address {address:#x}")
        return cls(memory, cookie)

    # --- A's end ---

    def post(self, order: Parcel, *, head: int, wanted: int, restart: PageList | None = None) -> None:
        """Write `order` for the peer whose gate is at physical `wanted`; `head` is the indirection list's.

        With `restart` the gate starts the peer anew from these pages; the list takes the space of the answer's parcel.
        """
        packed = order.pack()
        self._put(_ORDER_AT, packed)
        self._put(_ANSWER_AT, restart.pack() if restart else bytes(_HEADER.size))
        list_at = restart.channel_address + _ANSWER_AT if restart else 0
        self._put(0, mailbox.encode(self.cookie, Outcome.NONE, head, {}, wanted, list_at))

    def answer(self, sequence: int) -> tuple[Outcome, Parcel]:
        """Return (outcome, parcel) that the peer wrote for order `sequence`.

        A peer that failed may have written no parcel; the report of the mailbox is returned then, with no message.
        FormatError when the mailbox is damaged.
        """
        found = mailbox.decode(self._take(0, PAGE_SIZE))
        if found.cookie != self.cookie:
            raise FormatError("the mailbox was overwritten during the jump")
        try:
            parcel = Parcel.unpack(self._take(_ANSWER_AT, _ROOM))
        except FormatError:
            parcel = Parcel(0)
        if parcel.sequence != sequence or not found.outcome.of_a_job:
            return found.outcome, Parcel(sequence, found.report)
        return found.outcome, Parcel(sequence, found.report | parcel.content, parcel.message)

    # --- the peer's end ---

    @property
    def head(self) -> int:
        """The head of the indirection list, as the first kernel wrote it."""
        return mailbox.head_of(self._take(0, PAGE_SIZE))

    def order(self) -> Parcel:
        """Return the first kernel's order; FormatError when there is none."""
        return Parcel.unpack(self._take(_ORDER_AT, _ROOM))

    def note(self, report: JsonObject, outcome: Outcome = Outcome.NONE) -> None:
        """Write `report` (at most mailbox.REPORT_LIMIT bytes of JSON) in the mailbox, to be read after a panic."""
        self._put(0, mailbox.encode(self.cookie, outcome, self.head, report))

    def report(self, outcome: Outcome, answer: Parcel) -> None:
        """Write `outcome` and `answer` for the first kernel; UsageError when the answer is too long."""
        self._put(_ANSWER_AT, answer.pack())
        self.note({}, outcome)

    def _put(self, at: int, data: bytes) -> None:
        self._memory[at : at + len(data)] = data

    def _take(self, at: int, length: int) -> bytes:
        return bytes(self._memory[at : at + length])
