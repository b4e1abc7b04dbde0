"""The mailbox: a page of the first kernel (A) that passes arguments, results and reports between the kernels.

Layout (little endian; defined in kjump.gates.layouts):

    0x000  16 bytes  cookie, random, chosen by A; compared before anything is written
    0x010  u64       outcome (`Outcome`)
    0x018  u64       head of the kernel's indirection list for the loaded image (a list entry, with flags)
    0x020  u32       length of the report
    0x024  ...       report, UTF-8 JSON
    0xff0  u64       physical address of a page list that starts that gate's peer anew; 0: re-enter the peer
    0xff8  u64       physical address of the gate that A wants to enter; 0: the first one

A allocates it as locked memory of the process that jumps; the other side is given its physical address.
"""

from __future__ import annotations

import json
import mmap
import os
from dataclasses import dataclass
from enum import IntEnum

from kjump.errors import FormatError
from kjump.formats.record import JsonObject, Record
from kjump.gates.layouts import MAILBOX, OUTCOMES
from kjump.host.locked_memory import HostPages
from kjump.kexec.physical import map_physical
from kjump.memory import PAGE_SIZE
from kjump.ranges import RangeSet


class Outcome(IntEnum):
    """What came of a jump; the numbers are those of `kjump.gates.layouts.OUTCOMES`."""

    NONE = OUTCOMES["NONE"]
    """As it was posted: no report has been written."""
    GONE = OUTCOMES["GONE"]
    RESUMED = OUTCOMES["RESUMED"]
    FAILED = OUTCOMES["FAILED"]
    CANCELLED = OUTCOMES["CANCELLED"]
    DONE = OUTCOMES["DONE"]
    PANIC = OUTCOMES["PANIC"]

    @property
    def of_a_job(self) -> bool:
        """Whether a program of the other side wrote the outcome, and not a gate."""
        return self in (Outcome.RESUMED, Outcome.FAILED, Outcome.CANCELLED, Outcome.DONE)


COOKIE_SIZE = 16
_HEADER = MAILBOX.struct(last="report_length")
_WISHES = MAILBOX.struct("restart", "wanted")
_WISHES_AT = MAILBOX.offset("restart")
REPORT_LIMIT = _WISHES_AT - _HEADER.size


@dataclass(frozen=True)
class Contents:
    """What a mailbox page holds: cookie, outcome, head of the indirection list, report."""

    cookie: bytes
    outcome: Outcome
    head: int
    report: JsonObject


def encode(cookie: bytes, outcome: int, head: int, report: JsonObject, wanted: int = 0, restart: int = 0) -> bytes:
    """Return a mailbox page; ValueError when the report's JSON is longer than REPORT_LIMIT bytes."""
    text = json.dumps(report, separators=(",", ":")).encode()
    if len(text) > REPORT_LIMIT:
        raise ValueError(f"a report has at most {REPORT_LIMIT} bytes, not {len(text)}")
    return (_HEADER.pack(cookie, outcome, head, len(text)) + text).ljust(_WISHES_AT, b"\0") + _WISHES.pack(
        restart, wanted
    )


def head_of(page: bytes) -> int:
    """Return the head of the indirection list in a mailbox page, without checking its other fields."""
    return int(_HEADER.unpack_from(page)[2])


def decode(page: bytes) -> Contents:
    """Decode a mailbox page; FormatError when outcome or report are damaged."""
    cookie, outcome, head, length = _HEADER.unpack_from(page)
    if length > REPORT_LIMIT:
        raise FormatError(f"the mailbox claims a report of {length} bytes; it holds {REPORT_LIMIT}")
    try:
        known = Outcome(outcome)
    except ValueError:
        raise FormatError(f"the mailbox has an outcome that is not known ({outcome})") from None
    report = Record.parse(page[_HEADER.size : _HEADER.size + length] or b"{}", "the report in the mailbox")
    return Contents(cookie, known, head, report.others())


def fits(report: JsonObject) -> bool:
    """Tell whether the JSON of `report` fits in a mailbox (REPORT_LIMIT bytes)."""
    return len(json.dumps(report, separators=(",", ":")).encode()) <= REPORT_LIMIT


class Mailbox:
    """A's side: one pinned page, known by its physical address."""

    def __init__(self, avoid: RangeSet) -> None:
        """Take a page outside `avoid`, the physical ranges that the jump swaps out.

        HostError when no such page is found, or physical addresses are hidden (CAP_SYS_ADMIN is needed).
        """
        self.cookie = os.urandom(COOKIE_SIZE)
        self._page = HostPages(1, avoid)
        self.address = self._page.addresses[0]
        self._page.write(0, encode(self.cookie, Outcome.NONE, 0, {}))

    def post(self, head: int, message: JsonObject | None = None) -> None:
        """Reset the outcome, and write the indirection list's `head` and a `message` (JSON) for the other side.

        HostError when the kernel has moved the page (it may compact locked memory).
        """
        self._page.write(0, encode(self.cookie, Outcome.NONE, head, message or {}))
        self._page.check()

    def wipe(self) -> None:
        """Overwrite the report of the other side, which may contain secrets."""
        self._page.write(0, encode(self.cookie, Outcome.NONE, 0, {}))

    def read(self) -> tuple[Outcome, JsonObject]:
        """Return (outcome, report) as the other side left them; FormatError when they are damaged."""
        found = decode(self._page.read(0))
        if found.cookie != self.cookie:
            raise FormatError("the mailbox was overwritten during the jump")
        return found.outcome, found.report


class PeerMailbox:
    """The first kernel's mailbox, mapped by the other side."""

    def __init__(self, address: int, cookie: bytes, memory: mmap.mmap, at: int = 0) -> None:
        """Use the mailbox at physical `address`, byte `at` of `memory`; FormatError unless it begins with `cookie`."""
        if memory[at : at + COOKIE_SIZE] != cookie:
            raise FormatError(f"there is no mailbox with the expected cookie at physical address {address:#x}")
        self._memory = memory
        self._place = slice(at, at + PAGE_SIZE)
        self.cookie = cookie

    @classmethod
    def at_physical(cls, address: int, cookie: bytes) -> PeerMailbox:
        """Map the mailbox at physical `address` through /dev/mem; FormatError unless it begins with `cookie`.

        HostError when the kernel refuses.
        """
        return cls(address, cookie, map_physical(address, PAGE_SIZE, writable=True))

    @property
    def head(self) -> int:
        """The head of the indirection list, as the first kernel wrote it."""
        return head_of(self._memory[self._place])

    @property
    def message(self) -> JsonObject:
        """The first kernel's message, until a report replaces it; FormatError when it is damaged."""
        return decode(self._memory[self._place]).report

    def report(self, outcome: Outcome, report: JsonObject) -> None:
        """Write `outcome` and `report` for the first kernel; a report that is too long is reduced to its `reason`."""
        head = self.head
        try:
            page = encode(self.cookie, outcome, head, report)
        except ValueError:
            page = encode(self.cookie, outcome, head, {"reason": str(report.get("reason", ""))[:2000]})
        self._memory[self._place] = page
