"""Which pages of a kernel's memory are worth keeping."""

from __future__ import annotations

from kjump import _core
from kjump.dump.kernel import KernelLayout
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

_CHUNK = 32768
"""Page structs read at a time: 2 MiB of them, one section."""


def free_pages(layout: KernelLayout, frames: RangeSet) -> RangeSet:
    """Return those of `frames` (page frame numbers) that the kernel's page allocator has free.

    A free block is marked on its first struct page: its page type says buddy, its `private` the order.
    """
    info = layout.info
    stride = info.size("page")
    type_at = info.offset("page._mapcount")
    order_at = info.offset("page.private")
    buddy = info.number("PAGE_BUDDY_MAPCOUNT_VALUE") & 0xFFFFFFFF
    end = max((r.end for r in frames), default=0)
    bitmap = bytearray(-(-end // 64) * 8)
    for structs in layout.page_structs():
        for first in range(structs.first, min(structs.first + structs.count, end), _CHUNK):
            count = min(_CHUNK, structs.first + structs.count - first, end - first)
            if not RangeSet([Range.of_size(first, count)]) & frames:
                continue
            linear = structs.linear + (first - structs.first) * stride
            data = layout.read(linear, count * stride)
            _core.classify_buddy(data, first, stride, type_at, order_at, buddy, bitmap, 0)
    return runs(bitmap, end) & frames


def runs(bitmap: bytes | bytearray, end: int) -> RangeSet:
    """Return the set bits below `end` of `bitmap` (one bit a frame, lowest first) as ranges of frames."""
    return RangeSet(Range(a, b) for a, b in _core.bitmap_runs(bitmap, 0, end, True, 1))


def to_frames(addresses: RangeSet) -> RangeSet:
    """Return the whole pages inside `addresses` (bytes) as page frame numbers."""
    return RangeSet(Range(r.start // PAGE_SIZE, r.end // PAGE_SIZE) for r in addresses.aligned_inside(PAGE_SIZE))


def to_addresses(frames: RangeSet) -> RangeSet:
    """Return `frames` (page frame numbers) as physical addresses in bytes."""
    return RangeSet(Range(r.start * PAGE_SIZE, r.end * PAGE_SIZE) for r in frames)
