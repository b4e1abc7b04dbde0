"""Which pages of a kernel's memory are worth keeping.

A selection is a bitmap, one bit a page frame from frame 0 on: two of them take a 16384th of the address space up
to the highest frame. The saver and `kjump dump` both use it.
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
"""Page structs read at a time: 2 MiB of them, one section."""


@dataclass
class Selection:
    """What is left to keep: a bitmap of frames, and how many frames of each class were taken out of it.

    `no_struct` counts the frames taken out because the kernel has no struct page for them: firmware, devices.
    `warnings` say of what more is kept than was asked for, and why.
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

    Classes that VMCOREINFO does not say enough of are kept. FormatError when it lacks an entry without which nothing
    can be told, or memory that holds page structs is missing.
    """
    return select_in_place(layout, bytearray(present), exclude)


def select_in_place(layout: KernelLayout, keep: bytearray, exclude: int) -> Selection:
    """Do as `select`, and take the bits out of `keep` itself, which becomes the selection's: there is no second one."""
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
    """Return what `level` (0 to 31) keeps of `present`; pages of zeros (1) are for the writer to find.

    Frames for which the kernel has no struct page are no memory of its own, and are left out at any level.
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
    """Refuse a selection without the pages that it was learned from (FormatError).

    Page tables and page structs that are in use are neither free nor anybody's page cache, nor without a struct page.
    """
    places = [layout.root]
    for structs in islice(layout.page_structs(), _STRUCTS_LOOKED_AT):
        with contextlib.suppress(FormatError):  # of memory that was added later, a section's first structs may lack
            places.append(layout.translate(structs.linear).start)
    for frame in {address >> PAGE_SHIFT for address in places}:
        if count_between(present, frame, frame + 1) > count_between(selection.keep, frame, frame + 1):
            raise FormatError("the kernel's own page structs would be left out: VMCOREINFO or they are damaged")


def frames_with_structs(layout: KernelLayout) -> bytearray:
    """Return the bitmap of frames that the kernel has a struct page for, whole sections of them."""
    return bitmap(RangeSet(Range.of_size(s.first, s.count) for s in layout.page_structs()))


def pages_in_use(layout: KernelLayout, frames: RangeSet) -> RangeSet:
    """Return those of `frames` (page frame numbers) that the kernel's page allocator does not have free.

    FormatError as `select`, and when VMCOREINFO does not say what a free page is.
    """
    selection = select_in_place(layout, bitmap(frames), 1 << PageClass.FREE)
    if selection.warnings:
        raise FormatError(selection.warnings[0])
    return runs(selection.keep, selection.end)
