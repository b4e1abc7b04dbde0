"""Which pages of a kernel's memory are worth keeping.

A selection is a bitmap, one bit a page frame from frame 0 on: two of them take a 16384th of the address space up
to the highest frame. The saver and `kjump dump` both use it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kjump import _core
from kjump.dump.bitmaps import bitmap, count, intersection, runs
from kjump.dump.classes import PageClass, PageFields, exclusion_mask
from kjump.dump.kernel import KernelLayout
from kjump.ranges import Range, RangeSet

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
    selection = Selection(bytearray(present))
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
    selection = select(layout, known, exclusion_mask(level))
    selection.no_struct = count(present) - count(known)
    return selection


def frames_with_structs(layout: KernelLayout) -> bytearray:
    """Return the bitmap of frames that the kernel has a struct page for, whole sections of them."""
    return bitmap(RangeSet(Range.of_size(s.first, s.count) for s in layout.page_structs()))


def pages_in_use(layout: KernelLayout, frames: RangeSet) -> RangeSet:
    """Return those of `frames` (page frame numbers) that the kernel's page allocator does not have free."""
    selection = select(layout, bitmap(frames), 1 << PageClass.FREE)
    return runs(selection.keep, selection.end)
