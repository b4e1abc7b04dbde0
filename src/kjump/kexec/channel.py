"""The channel between A and its resident peers: the mailbox's page, and a parcel each way behind it.

Layout of its 2 MiB (little endian; offsets in bytes):

    0x000000  4 KiB             the mailbox (see mailbox.py)
    0x001000  1 MiB less 4 KiB  the parcel from A to the peer: what to do
    0x100000  1 MiB less 4 KiB  the parcel from the peer to A: what came of it

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
        """Return it as bytes; UsageError when it is more than the channel carries."""
        text = json.dumps(self.content, separators=(",", ":")).encode()
        room = _ROOM - _HEADER.size - len(text)
        if len(self.message) > room:
            raise UsageError(f"a message of {len(self.message)} bytes is too long: {max(room, 0)} go into one switch")
        return _HEADER.pack(_MAGIC, self.sequence, len(text), len(self.message)) + text + self.message

    @classmethod
    def unpack(cls, data: bytes) -> Parcel:
        """Read what `pack` wrote, from the beginning of `data`; FormatError when it is damaged."""
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
    """Pages for the gate to put in place: (address where a page lies, address where it belongs), physical.

    `channel_address` is the channel's, in which the list travels.
    """

    channel_address: int
    pages: tuple[tuple[int, int], ...]

    def pack(self) -> bytes:
        """Return the list as the gate reads it (gate.h); UsageError when the channel cannot hold it."""
        packed = pack_page_list((source, destination, 1) for source, destination in self.pages)
        if len(packed) > _ROOM:
            raise UsageError(
                f"kernel and initrds are too large to be started anew: a list of {len(self.pages)} scattered pages "
                "does not fit into the channel"
            )
        return packed


class Channel:
    """Either end of the channel, on memory that both reach."""

    def __init__(self, memory: mmap.mmap | bytearray, cookie: bytes) -> None:
        """Use `memory`, SIZE bytes; `cookie` is what its mailbox begins with once it has been posted."""
        self._memory = memory
        self.cookie = cookie

    @classmethod
    def at_physical(cls, address: int, cookie: bytes) -> Channel:
        """Reach A's channel from a peer, through /dev/mem; FormatError unless it begins with `cookie`.

        HostError when the kernel refuses.
        """
        memory = map_physical(address, SIZE, writable=True)
        if memory[: mailbox.COOKIE_SIZE] != cookie:
            raise FormatError(f"there is no channel of ours at physical address {address:#x}")
        return cls(memory, cookie)

    # --- A's end ---

    def post(self, order: Parcel, *, head: int, wanted: int, restart: PageList | None = None) -> None:
        """Leave `order` for the peer whose gate is at physical `wanted`; `head` is the indirection list's.

        With `restart` the gate starts the peer anew from these pages; the list lies where the answer will.
        """
        packed = order.pack()
        self._put(_ORDER_AT, packed)
        self._put(_ANSWER_AT, restart.pack() if restart else bytes(_HEADER.size))
        list_at = restart.channel_address + _ANSWER_AT if restart else 0
        self._put(0, mailbox.encode(self.cookie, Outcome.NONE, head, {}, wanted, list_at))

    def answer(self, sequence: int) -> tuple[Outcome, Parcel]:
        """Return (outcome, parcel) as the peer left them for order `sequence`.

        A peer that could not speak for itself has left no parcel: then there is what its mailbox says, and no message.
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
        """The head of the indirection list that A left."""
        return mailbox.head_of(self._take(0, PAGE_SIZE))

    def order(self) -> Parcel:
        """Return what A wants; FormatError when there is no order."""
        return Parcel.unpack(self._take(_ORDER_AT, _ROOM))

    def note(self, report: JsonObject, outcome: Outcome = Outcome.NONE) -> None:
        """Leave a `report` (at most mailbox.REPORT_LIMIT bytes of JSON) in the mailbox, where it outlives a panic."""
        self._put(0, mailbox.encode(self.cookie, outcome, self.head, report))

    def report(self, outcome: Outcome, answer: Parcel) -> None:
        """Leave `outcome` and `answer` for A; UsageError when the answer is too long."""
        self._put(_ANSWER_AT, answer.pack())
        self.note({}, outcome)

    def _put(self, at: int, data: bytes) -> None:
        self._memory[at : at + len(data)] = data

    def _take(self, at: int, length: int) -> bytes:
        return bytes(self._memory[at : at + length])
