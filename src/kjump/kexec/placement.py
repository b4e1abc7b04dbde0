"""Where a window costs least: a load is slow when many free pages lie in the window.

kexec_load allocates its source pages one by one. A page that lies in the window is put aside until its own address is
loaded, and for each further page the kernel searches all that were put aside (kimage_alloc_page in
kernel/kexec_core.c): a few thousand of them make a load ten times as slow. The allocator hands out single free pages
first ("crumbs" here: their neighbours are in use), and then splits large free blocks. On a system that has just booted
it takes the lowest blocks; after a long uptime it takes those freed last, which lie together at a place that cannot be
found out. The best window therefore has no free pages, or lies where the allocator does not get during the load.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import accumulate

from kjump.host import procfs, root
from kjump.kexec.window import ALIGNMENT, find_window, places
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

_PAGES = ALIGNMENT // PAGE_SIZE
_KPF_BUDDY = 1 << 10
_ENTRY = 8
_SAMPLE = _PAGES // 8
"""Pages of a block that are looked at: reading the flags of all pages of a large machine takes seconds."""
_MASK = int.from_bytes(_KPF_BUDDY.to_bytes(_ENTRY, "little") * _SAMPLE, "little")


class FreeMap:
    """How many pages are free in each block of ALIGNMENT bytes of physical memory."""

    def __init__(self, blocks: dict[int, int], free_pages: int) -> None:
        """`blocks` maps a block's number to its count of free pages; `free_pages` is the machine's total."""
        numbers = range(max(blocks, default=-1) + 1)
        self._crumbs = [0, *accumulate(blocks.get(n, 0) % _PAGES for n in numbers)]
        self._whole = [0, *accumulate(blocks.get(n, 0) // _PAGES * _PAGES for n in numbers)]
        self._elsewhere = max(0, free_pages - self._crumbs[-1] - self._whole[-1])

    def cost(self, window: Range) -> int:
        """Estimate how many pages of `window` (whole blocks) the kernel would allocate for a load of the window's size.

        For free blocks the result is the mean of two cases: the kernel takes the lowest blocks first, or takes these
        first.
        """
        crumbs_below, crumbs_up_to = _below(self._crumbs, window.start), _below(self._crumbs, window.end)
        whole_below, whole_up_to = _below(self._whole, window.start), _below(self._whole, window.end)
        crumbs, whole = crumbs_up_to - crumbs_below, whole_up_to - whole_below
        outside = self._crumbs[-1] - crumbs + self._elsewhere
        broken_up = max(0, window.size // PAGE_SIZE - outside)
        lowest_first = min(whole, max(0, broken_up - whole_below))
        freed_last = min(whole, broken_up)
        return crumbs + (lowest_first + freed_last) // 2


def _below(sums: list[int], address: int) -> int:
    return sums[min(address // ALIGNMENT, len(sums) - 1)]


def read(areas: RangeSet) -> FreeMap | None:
    """Return the running kernel's free pages in `areas` (physical, aligned to ALIGNMENT), estimated from samples.

    None when /proc/kpageflags cannot be read. Source: Documentation/admin-guide/mm/pagemap.rst (KPF_BUDDY).
    """
    blocks = {}
    try:
        with root.at("/proc/kpageflags").open("rb", buffering=0) as flags:
            for area in areas:
                for start in range(area.start, area.end, ALIGNMENT):
                    data = os.pread(flags.fileno(), _SAMPLE * _ENTRY, start // PAGE_SIZE * _ENTRY)
                    free = (int.from_bytes(data, "little") & _MASK).bit_count()
                    blocks[start // ALIGNMENT] = free * (_PAGES // _SAMPLE)
    except OSError:
        return None
    return FreeMap(blocks, procfs.meminfo()["MemFree"] // PAGE_SIZE)


def window_here(size: int, taken: Iterable[Range] = ()) -> Range:
    """Return the best place for a window of `size` bytes in the running kernel's RAM, outside `taken`.

    PlanError when there is none.
    """
    areas = places(procfs.iomem(), taken)
    return find_window(areas, size, read(areas))
