"""Which pages of a kernel's memory are worth keeping.

A selection is a bitmap, one bit a page frame from frame 0 on: two of them take a 16384th of the address space up
to the highest frame. The saver and `kjump dump` both use it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kjump import _core
from kjump.dump.classes import PageClass, PageFields, exclusion_mask
from kjump.dump.kernel import KernelLayout
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet, align_up

_PIECE = 1 << 16
"""Bytes of a bitmap that are gone through at a time: a copy of all is 32 MiB for a tebibyte, in a small window."""
_ONES = b"\xff" * _PIECE
_CHUNK = 32768
"""Page structs read at a time: 2 MiB of them, one section."""


@dataclass
class Selection:
    """What is left to keep: a bitmap of frames, and how many frames of each class were taken out of it.

    `no_struct` counts the frames taken out because the kernel has no struct page for them: firmware, devices.
    """

    keep: bytearray
    left_out: dict[PageClass, int] = field(default_factory=lambda: dict.fromkeys(PageClass, 0))
    no_struct: int = 0

    @property
    def end(self) -> int:
        """The frame behind the last that the bitmap can hold."""
        return len(self.keep) * 8


def select(layout: KernelLayout, present: bytes | bytearray, exclude: int) -> Selection:
    """Return `present` (a bitmap of frames) without the pages whose class is in the mask `exclude`.

    FormatError when VMCOREINFO lacks an entry or memory that holds page structs is missing.
    """
    return select_in_place(layout, bytearray(present), exclude)


def select_in_place(layout: KernelLayout, keep: bytearray, exclude: int) -> Selection:
    """Do as `select`, and take the bits out of `keep` itself, which becomes the selection's: there is no second one."""
    selection = Selection(keep)
    fields = PageFields.of(layout.info, layout.word)
    packed = fields.pack()
    for structs in layout.page_structs():
        last = min(structs.first + structs.count, selection.end)
        for first in range(structs.first, last, _CHUNK):
            count = min(_CHUNK, last - first)
            if not int.from_bytes(selection.keep[first // 8 : -(-(first + count) // 8)]):
                continue
            linear = structs.linear + (first - structs.first) * fields.stride
            data = layout.read(linear, count * fields.stride)
            for page_class, cleared in zip(
                PageClass, _core.classify(data, first, packed, exclude, selection.keep), strict=True
            ):
                selection.left_out[page_class] += cleared
    return selection


def select_level(layout: KernelLayout, present: bytes | bytearray, level: int) -> Selection:
    """Return what `level` (0 to 31) keeps of `present`; pages of zeros (1) are for the writer to find.

    Frames for which the kernel has no struct page are no memory of its own, and are left out at any level.
    """
    known = intersection(present, frames_with_structs(layout))
    without_struct = count(present) - count(known)
    selection = select_in_place(layout, known, exclusion_mask(level))
    selection.no_struct = without_struct
    return selection


def frames_with_structs(layout: KernelLayout) -> bytearray:
    """Return the bitmap of frames that the kernel has a struct page for, whole sections of them."""
    return bitmap(RangeSet(Range.of_size(s.first, s.count) for s in layout.page_structs()))


def intersection(bits: bytes | bytearray, others: bytes | bytearray) -> bytearray:
    """Return the bits that are set in both, in as many bytes as `bits` has."""
    both = bytearray(len(bits))
    for at in range(0, min(len(bits), len(others)), _PIECE):
        end = min(at + _PIECE, len(bits), len(others))
        some = int.from_bytes(bits[at:end], "little") & int.from_bytes(others[at:end], "little")
        both[at:end] = some.to_bytes(end - at, "little")
    return both


def pages_in_use(layout: KernelLayout, frames: RangeSet) -> RangeSet:
    """Return those of `frames` (page frame numbers) that the kernel's page allocator does not have free."""
    selection = select_in_place(layout, bitmap(frames), 1 << PageClass.FREE)
    return runs(selection.keep, selection.end)


def bitmap(frames: RangeSet) -> bytearray:
    """Return `frames` (page frame numbers) as a bitmap, lowest frame first, in whole words of 64 bits."""
    end = align_up(max((r.end for r in frames), default=0), 64)
    bits = bytearray(end // 8)
    for item in frames:
        _set(bits, item)
    return bits


def _set(bits: bytearray, item: Range) -> None:
    inner = item.aligned_inside(8)
    if item.start // 8 == (item.end - 1) // 8:
        bits[item.start // 8] |= ((1 << item.size) - 1) << item.start % 8
        return
    for at in range(inner.start // 8, inner.end // 8, _PIECE):
        end = min(at + _PIECE, inner.end // 8)
        bits[at:end] = _ONES[: end - at]
    if item.start < inner.start:
        bits[item.start // 8] |= 0xFF << item.start % 8 & 0xFF
    if item.end > inner.end:
        bits[inner.end // 8] |= (1 << item.end - inner.end) - 1


def runs(bits: bytes | bytearray, end: int) -> RangeSet:
    """Return the set bits below `end` of `bits` (one bit a frame, lowest first) as ranges of frames."""
    pieces = range(0, end, 8 * _PIECE)
    return RangeSet.ascending(
        run for at in pieces for run in _core.bitmap_runs(bits, at, min(at + 8 * _PIECE, end), True, 1)
    )


def count(bits: bytes | bytearray) -> int:
    """Return how many bits of a bitmap are set."""
    return sum(int.from_bytes(bits[at : at + _PIECE]).bit_count() for at in range(0, len(bits), _PIECE))


def count_between(bits: bytes | bytearray, start: int, end: int) -> int:
    """Return how many of the bits [start, end) are set."""
    first, last = start // 8, -(-end // 8)
    some = int.from_bytes(bits[first:last], "little") >> start % 8
    return (some & ((1 << end - start) - 1)).bit_count()


def to_frames(addresses: RangeSet) -> RangeSet:
    """Return the whole pages inside `addresses` (bytes) as page frame numbers."""
    pairs = addresses.aligned_inside(PAGE_SIZE).pairs()
    return RangeSet.ascending((start // PAGE_SIZE, end // PAGE_SIZE) for start, end in pairs)


def to_addresses(frames: RangeSet) -> RangeSet:
    """Return `frames` (page frame numbers) as physical addresses in bytes."""
    return RangeSet.ascending((start * PAGE_SIZE, end * PAGE_SIZE) for start, end in frames.pairs())
