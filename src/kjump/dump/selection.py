"""Selects the pages of a kernel's memory to keep; the saver and `kjump dump` use it.

A selection is a bitmap, one bit for each page frame from frame 0 on. Two bitmaps take 1/16384 of the physical address
space up to the highest frame.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from itertools import islice

from kjump import _core
from kjump.dump.bitmaps import bitmap, count, count_between, intersection, runs
from kjump.dump.classes import PageClass, PageFields, doubts, exclusion_mask
from kjump.dump.kernel import KernelLayout
from kjump.errors import FormatError
from kjump.memory import PAGE_SHIFT
from kjump.ranges import Range, RangeSet

_STRUCTS_LOOKED_AT = 16
_CHUNK = 32768
"""Page structs that are read at a time: those of one section, 2 MiB."""


@dataclass
class Selection:
    """The page frames to keep (a bitmap), and the number of frames of each class that were left out.

    `no_struct` counts the frames left out because the kernel has no struct page for them: firmware, devices.
    `warnings` name the classes that are kept although they should be left out, and why.
    """

    keep: bytearray
    left_out: dict[PageClass, int] = field(default_factory=lambda: dict.fromkeys(PageClass, 0))
    no_struct: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def end(self) -> int:
        """The frame behind the last that the bitmap can hold."""
        return len(self.keep) * 8


def select(layout: KernelLayout, present: bytes | bytearray, exclude: int) -> Selection:
    """Return `present` (a bitmap of frames) without the pages whose class is in the mask `exclude`.

    Classes for which VMCOREINFO lacks an entry are kept. FormatError when it lacks an entry that all classes need, or
    memory that holds page structs is missing.
    """
    return select_in_place(layout, bytearray(present), exclude)


def select_in_place(layout: KernelLayout, keep: bytearray, exclude: int) -> Selection:
    """Select as `select` does, but clear the bits in `keep` itself, which becomes the selection's bitmap."""
    unsure = [doubt for doubt in doubts(layout.info) if doubt.classes & exclude]
    for doubt in unsure:
        exclude &= ~doubt.classes if doubt.keep else -1
    selection = Selection(keep, warnings=tuple(doubt.reason for doubt in unsure))
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
    """Return what dump `level` (0 to 31) keeps of `present`; pages of zeros (1) are left to the writer.

    Frames for which the kernel has no struct page do not belong to its memory, and are left out at any level.
    """
    known = intersection(present, frames_with_structs(layout))
    if not any(known):
        raise FormatError("the kernel's memory map has none of the memory that is here: VMCOREINFO or it is damaged")
    without_struct = count(present) - count(known)
    selection = select_in_place(layout, known, exclusion_mask(level))
    selection.no_struct = without_struct
    _refuse_nonsense(layout, present, selection)
    return selection


def _refuse_nonsense(layout: KernelLayout, present: bytes | bytearray, selection: Selection) -> None:
    """Raise FormatError for a selection that leaves out the kernel's own page tables or page structs.

    Such pages are in use: they are neither free nor page cache, and have a struct page. The page classes must be wrong.
    """
    places = [layout.root]
    for structs in islice(layout.page_structs(), _STRUCTS_LOOKED_AT):
        with contextlib.suppress(FormatError):  # the first structs of a section of hot-added memory may be missing
            places.append(layout.translate(structs.linear).start)
    for frame in {address >> PAGE_SHIFT for address in places}:
        if count_between(present, frame, frame + 1) > count_between(selection.keep, frame, frame + 1):
            raise FormatError("the kernel's own page structs would be left out: VMCOREINFO or they are damaged")


def frames_with_structs(layout: KernelLayout) -> bytearray:
    """Return the bitmap of frames for which the kernel has a struct page, in whole sections."""
    return bitmap(RangeSet(Range.of_size(s.first, s.count) for s in layout.page_structs()))


def pages_in_use(layout: KernelLayout, frames: RangeSet) -> RangeSet:
    """Return the part of `frames` (page frame numbers) that is not free in the kernel's page allocator.

    FormatError as `select`, and when VMCOREINFO lacks the entries that mark a free page.
    """
    selection = select_in_place(layout, bitmap(frames), 1 << PageClass.FREE)
    if selection.warnings:
        raise FormatError(selection.warnings[0])
    return runs(selection.keep, selection.end)
