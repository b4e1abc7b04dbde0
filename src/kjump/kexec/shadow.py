"""The shadow: where A's pages are while another kernel sits in their place.

For each page a load takes (destination) the kernel keeps a page elsewhere (source); the jump swaps the two.
The list of pairs is the kernel's indirection list (`kimage_entry_t` in include/linux/kexec.h): words that are
physical addresses with flags in their low bits.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from itertools import chain
from typing import NamedTuple

from kjump import _core
from kjump.errors import FormatError
from kjump.memory import PAGE_SIZE, PhysicalMemory
from kjump.ranges import Range, RangeSet

IND_DESTINATION = 1
IND_INDIRECTION = 2
IND_DONE = 4
IND_SOURCE = 8

_RUN = struct.Struct("<3Q")


class ShadowRun(NamedTuple):
    """`pages` pages from frame `destination` on, whose contents are kept from frame `source` on.

    A load has up to one for each page: hence a tuple, and loops over plain numbers below.
    """

    destination: int
    source: int
    pages: int


def walk(read: Callable[[int, int], bytes], head: int) -> list[ShadowRun]:
    """Follow the indirection list that begins with the entry `head`; `read(address, length)` reads A's memory.

    Pages that are their own source (the kernel had put them in place already) are runs with equal frames.
    FormatError when the list is not one: an entry without a flag, or no end after 32 GiB of list.
    """
    try:
        return [*map(ShadowRun._make, _RUN.iter_unpack(_core.shadow_runs(read, head)))]
    except ValueError as error:
        raise FormatError(str(error)) from None


class Shadow:
    """The pairs of a load, both ways; frames are page frame numbers."""

    def __init__(self, runs: Iterable[ShadowRun]) -> None:
        """Take the runs of `walk` or of an image's note."""
        self.runs = tuple(sorted(runs))
        self._starts = [destination for destination, _, _ in self.runs]
        self.destinations = RangeSet.joined((d, n) for d, _, n in self.runs)
        self.sources = RangeSet.joined(sorted((s, n) for d, s, n in self.runs if s != d))
        self.in_place = RangeSet.joined((s, n) for d, s, n in self.runs if s == d)

    def place(self, frames: Range) -> list[tuple[int, int, int]]:
        """Return where A's `frames` are: (frame, frame that holds its contents, count), in order."""
        placed: list[tuple[int, int, int]] = []
        at, end = frames.start, frames.end
        first = max(bisect_right(self._starts, at) - 1, 0)
        for destination, source, count in self.runs[first : bisect_left(self._starts, end)]:
            if destination + count <= at:
                continue
            if destination > at:
                placed.append((at, at, destination - at))
                at = destination
            length = min(end, destination + count) - at
            placed.append((at, source + at - destination, length))
            at += length
        if at < end:
            placed.append((at, at, end - at))
        return placed

    def pack(self) -> bytes:
        """Return the runs as bytes: three little-endian u64 each (destination, source, count)."""
        return struct.pack(f"<{3 * len(self.runs)}Q", *chain.from_iterable(self.runs))

    @classmethod
    def unpack(cls, data: bytes) -> Shadow:
        """Read what `pack` wrote; FormatError when the length is not a multiple of 24 bytes."""
        if len(data) % _RUN.size:
            raise FormatError(f"a page list has a multiple of {_RUN.size} bytes, not {len(data)}")
        return cls(map(ShadowRun._make, _RUN.iter_unpack(data)))


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
