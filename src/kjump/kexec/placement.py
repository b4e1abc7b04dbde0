"""Which memory is free, as far as it matters to a load: where a window costs least.

kexec_load takes its pages one by one from the kernel. A page that happens to lie in the window is put aside until its
turn comes, and for each further page the kernel goes through all that were put aside: a few thousand of them make a
load ten times as slow. What the kernel hands out first are the crumbs, free pages whose neighbours are in use; when
there are no more it breaks up blocks that are free as a whole: on a system that has just booted the lowest, on one that
has run for long those that were freed last, which lie together, and nothing says where. So the best window is all in
use, or out of reach.
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
"""So many pages of a block are looked at: to ask for all of a large machine's takes seconds."""
_MASK = int.from_bytes(_KPF_BUDDY.to_bytes(_ENTRY, "little") * _SAMPLE, "little")


class FreeMap:
    """How many pages are free in each block of ALIGNMENT bytes of physical memory."""

    def __init__(self, blocks: dict[int, int], free_pages: int) -> None:
        """`blocks` maps the number of a block to its free pages; `free_pages` is how many the machine has in all."""
        numbers = range(max(blocks, default=-1) + 1)
        self._crumbs = [0, *accumulate(blocks.get(n, 0) % _PAGES for n in numbers)]
        self._whole = [0, *accumulate(blocks.get(n, 0) // _PAGES * _PAGES for n in numbers)]
        self._elsewhere = max(0, free_pages - self._crumbs[-1] - self._whole[-1])

    def cost(self, window: Range) -> int:
        """Return about how many pages of `window` (whole blocks) the kernel would hand out to a load of its size.

        Whole free blocks count for a half when they are not the lowest: where the kernel begins with them it takes all.
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
    """Return the running kernel's map of `areas` (physical, aligned to ALIGNMENT), as samples of each block tell.

    None when the kernel does not. Source: Documentation/admin-guide/mm/pagemap.rst (/proc/kpageflags, KPF_BUDDY).
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
    """Return the best place for a window of `size` bytes in the running kernel's memory, clear of `taken`.

    PlanError when there is none.
    """
    areas = places(procfs.iomem(), taken)
    return find_window(areas, size, read(areas))
