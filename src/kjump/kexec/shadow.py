"""The shadow: where A's pages are while another kernel sits in their place.

For each page a load takes (destination) the kernel keeps a page elsewhere (source); the jump swaps the two.
The list of pairs is the kernel's indirection list (`kimage_entry_t` in include/linux/kexec.h): words that are
physical addresses with flags in their low bits.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kjump.errors import FormatError
from kjump.memory import PAGE_SIZE, PhysicalMemory
from kjump.ranges import Range, RangeSet

IND_DESTINATION = 1
IND_INDIRECTION = 2
IND_DONE = 4
IND_SOURCE = 8

_ADDRESS = ~(PAGE_SIZE - 1)
_ENTRIES = PAGE_SIZE // 8
_RUN = struct.Struct("<3Q")


@dataclass(frozen=True, slots=True)
class ShadowRun:
    """`count` pages from frame `destination` on, whose contents are kept from frame `source` on."""

    destination: int
    source: int
    count: int


def walk(read: Callable[[int, int], bytes], head: int) -> list[ShadowRun]:
    """Follow the indirection list that begins with the entry `head`; `read(address, length)` reads A's memory.

    Pages that are their own source (the kernel had put them in place already) are runs with equal frames.
    FormatError when the list is not one: an entry without a flag, or no end after 2**32 pages.
    """
    runs: list[ShadowRun] = []
    destination: int | None = None
    entries = iter((head,))
    for _ in range(1 << 32):
        entry = next(entries, 0)
        address = entry & _ADDRESS
        if entry & IND_DONE:
            return runs
        if entry & IND_INDIRECTION:
            entries = iter(struct.unpack(f"<{_ENTRIES}Q", read(address, PAGE_SIZE)))
        elif entry & IND_DESTINATION:
            destination = address // PAGE_SIZE
        elif entry & IND_SOURCE and destination is not None:
            _append(runs, destination, address // PAGE_SIZE)
            destination += 1
        else:
            raise FormatError(f"the kernel's indirection list has an entry without meaning: {entry:#x}")
    raise FormatError("the kernel's indirection list does not end")


def _append(runs: list[ShadowRun], destination: int, source: int) -> None:
    if runs:
        last = runs[-1]
        if last.destination + last.count == destination and last.source + last.count == source:
            runs[-1] = ShadowRun(last.destination, last.source, last.count + 1)
            return
    runs.append(ShadowRun(destination, source, 1))


class Shadow:
    """The pairs of a load, both ways; frames are page frame numbers."""

    def __init__(self, runs: Iterable[ShadowRun]) -> None:
        """Take the runs of `walk` or of an image's note."""
        self.runs = tuple(sorted(runs, key=lambda r: r.destination))
        self.destinations = RangeSet(Range.of_size(r.destination, r.count) for r in self.runs)
        self.sources = RangeSet(Range.of_size(r.source, r.count) for r in self.runs if r.source != r.destination)
        self.in_place = RangeSet(Range.of_size(r.source, r.count) for r in self.runs if r.source == r.destination)

    def place(self, frames: Range) -> list[tuple[int, int, int]]:
        """Return where A's `frames` are: (frame, frame that holds its contents, count), in order."""
        placed: list[tuple[int, int, int]] = []
        at = frames.start
        for run in self._overlapping(frames):
            start = max(frames.start, run.destination)
            if start > at:
                placed.append((at, at, start - at))
            end = min(frames.end, run.destination + run.count)
            placed.append((start, run.source + start - run.destination, end - start))
            at = end
        if at < frames.end:
            placed.append((at, at, frames.end - at))
        return placed

    def _overlapping(self, frames: Range) -> list[ShadowRun]:
        low, high = 0, len(self.runs)
        while low < high:
            middle = (low + high) // 2
            if self.runs[middle].destination + self.runs[middle].count <= frames.start:
                low = middle + 1
            else:
                high = middle
        found = []
        for run in self.runs[low:]:
            if run.destination >= frames.end:
                break
            found.append(run)
        return found

    def pack(self) -> bytes:
        """Return the runs as bytes: three little-endian u64 each (destination, source, count)."""
        return b"".join(_RUN.pack(r.destination, r.source, r.count) for r in self.runs)

    @classmethod
    def unpack(cls, data: bytes) -> Shadow:
        """Read what `pack` wrote; FormatError when the length is not a multiple of 24 bytes."""
        if len(data) % _RUN.size:
            raise FormatError(f"a page list has a multiple of {_RUN.size} bytes, not {len(data)}")
        return cls(ShadowRun(*fields) for fields in _RUN.iter_unpack(data))


class ParkedMemory:
    """A's physical memory as A sees it, read while another kernel sits in its window.

    `memory` is the machine's memory as it is now; addresses that were swapped out are looked up in the shadow.
    """

    def __init__(self, memory: PhysicalMemory, shadow: Shadow) -> None:
        """Look at `memory` through `shadow`."""
        self._memory = memory
        self._shadow = shadow
        self._ranges = memory.ranges | RangeSet(
            Range(r.start * PAGE_SIZE, r.end * PAGE_SIZE) for r in shadow.destinations
        )

    @property
    def ranges(self) -> RangeSet:
        """The physical addresses that can be read."""
        return self._ranges

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes of A from physical `address`."""
        wanted = Range.of_size(address, length)
        pages = wanted.aligned_outside(PAGE_SIZE)
        parts = []
        for frame, holder, count in self._shadow.place(Range(pages.start // PAGE_SIZE, pages.end // PAGE_SIZE)):
            part = Range.of_size(frame * PAGE_SIZE, count * PAGE_SIZE).intersection(wanted)
            parts.append(self._memory.read(part.start + (holder - frame) * PAGE_SIZE, part.size))
        return b"".join(parts)
