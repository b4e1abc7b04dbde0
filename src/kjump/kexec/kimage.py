"""The shadow: the pages that hold the first kernel's contents while another kernel occupies their place.

For each page a load takes (destination) the kernel keeps a page elsewhere (source); the jump swaps the two.
The list of pairs is the kernel's indirection list (`kimage_entry_t` in include/linux/kexec.h): 64-bit entries, each
a physical address with flags in its low bits.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from itertools import chain, islice
from typing import NamedTuple

from kjump import _core
from kjump.errors import FormatError, HostError
from kjump.memory import PAGE_SIZE, PhysicalMemory
from kjump.ranges import Range, RangeSet

IND_DESTINATION = 1
IND_INDIRECTION = 2
IND_DONE = 4
IND_SOURCE = 8

RUN = struct.Struct("<3Q")
_WORDS = PAGE_SIZE // 8


class ShadowRun(NamedTuple):
    """`pages` consecutive pages from frame `destination` on, whose contents are kept from frame `source` on.

    A load can have as many runs as pages. The type is therefore a tuple, and the loops below use plain numbers.
    """

    destination: int
    source: int
    pages: int


def walk(read: Callable[[int, int], bytes], head: int) -> list[ShadowRun]:
    """Follow the indirection list that begins with the entry `head`; `read(address, length)` reads A's memory.

    A page that is its own source (the kernel had allocated the destination page itself) is in a run with equal frames.
    FormatError when an entry has no flag, or the list has no end within 32 GiB.
    """
    try:
        return [*map(ShadowRun._make, RUN.iter_unpack(_core.shadow_runs(read, head)))]
    except ValueError as error:
        raise FormatError(str(error)) from None


def kept_head(read: Callable[[int, int], bytes], control: int, head: int) -> int:
    """Return the physical address at which the first kernel keeps `head` for its way back, or 0 if it is ambiguous.

    The kernel keeps it in the control page of the jump (x86_64: CP_PA_BACKUP_PAGES_MAP in
    arch/x86/kernel/relocate_kernel_64.S). `control` is any physical address in that page; `read(address, length)` reads
    the first kernel's memory.
    """
    page = control & -PAGE_SIZE
    words = struct.unpack(f"<{_WORDS}Q", read(page, PAGE_SIZE))
    return page + 8 * words.index(head) if words.count(head) == 1 else 0


class Shadow:
    """The pairs of destination and source pages of a load; frames are page frame numbers."""

    def __init__(self, runs: Iterable[ShadowRun]) -> None:
        """Use the runs that `walk` returned or an image's note holds."""
        self.runs = tuple(sorted(runs))
        self._starts = [destination for destination, _, _ in self.runs]
        self.destinations = RangeSet.joined((d, n) for d, _, n in self.runs)
        self.sources = RangeSet.joined(sorted((s, n) for d, s, n in self.runs if s != d))
        self.in_place = RangeSet.joined((s, n) for d, s, n in self.runs if s == d)

    def place(self, frames: Range) -> list[tuple[int, int, int]]:
        """Return where the contents of A's `frames` are: (frame, frame that holds them, count), by ascending frame."""
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

    def within(self, frames: RangeSet) -> Shadow:
        """Return the pairs whose destinations are in `frames`, less those that are their own sources."""
        pairs = chain.from_iterable(self.place(item) for item in frames)
        return Shadow(ShadowRun(frame, holder, count) for frame, holder, count in pairs if frame != holder)

    def indirection_list(self, frames: Iterable[Range]) -> tuple[int, dict[int, bytes]]:
        """Return an indirection list for these pairs: its head entry, and its pages' contents by physical address.

        The list takes the first pages of `frames`; HostError when those are too few.
        """
        words: list[int] = []
        for destination, source, count in self.runs:
            words.append(destination * PAGE_SIZE | IND_DESTINATION)
            words += range(source * PAGE_SIZE | IND_SOURCE, (source + count) * PAGE_SIZE, PAGE_SIZE)
        words.append(IND_DONE)
        room = _WORDS - 1
        chunks = [words[i : i + room] for i in range(0, len(words), room)]
        taken = islice(chain.from_iterable(range(r.start, r.end) for r in frames), len(chunks))
        pages = [frame * PAGE_SIZE for frame in taken]
        if len(pages) < len(chunks):
            raise HostError(f"a list of {len(words)} entries does not fit in {len(pages)} pages")
        for chunk, following in zip(chunks, pages[1:], strict=False):
            chunk.append(following | IND_INDIRECTION)
        contents = (struct.pack(f"<{len(chunk)}Q", *chunk).ljust(PAGE_SIZE, b"\0") for chunk in chunks)
        return pages[0] | IND_INDIRECTION, dict(zip(pages, contents, strict=True))

    def pack(self) -> bytes:
        """Return the runs as bytes: three little-endian u64 each (destination, source, count)."""
        return struct.pack(f"<{3 * len(self.runs)}Q", *chain.from_iterable(self.runs))

    @classmethod
    def unpack(cls, data: bytes) -> Shadow:
        """Read what `pack` wrote; FormatError when the length is not a multiple of 24 bytes."""
        if len(data) % RUN.size:
            raise FormatError(f"a page list has a multiple of {RUN.size} bytes, not {len(data)}")
        return cls(map(ShadowRun._make, RUN.iter_unpack(data)))


class ParkedMemory:
    """The first kernel's physical memory as that kernel sees it, read while another kernel occupies the window.

    `memory` is the machine's memory as it is now; pages that were swapped out are read from the shadow.
    """

    def __init__(self, memory: PhysicalMemory, shadow: Shadow) -> None:
        """Read `memory`, and the pages swapped out of it where `shadow` says they are."""
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
