"""Physical memory in a file: what all kinds of dumps have in common."""

from __future__ import annotations

from functools import cached_property
from types import TracebackType

from kjump import _core
from kjump.dump import bitmaps
from kjump.dump.kernel import KernelLayout
from kjump.errors import FormatError
from kjump.formats import notes, vmcoreinfo
from kjump.formats.notes import LargeNote
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

_BITMAP_FREE = 1 << 26
"""A bitmap of so many frames (256 GiB of memory, 8 MiB) is made for any dump, a larger one for 64 frames a page."""
_HOLES_FREE = 1 << 24
"""The same for memory that is not in the dump, and without which it is as good (64 GiB, 2 MiB)."""
_MOST_FRAMES = 1 << 36


class Source:
    """Physical memory in a file: what all kinds have in common.

    `kind` names the format, `notes` are the ELF notes it carries, `large_notes` those that are not held in memory.
    `present` is a bitmap of the page frames that can be read. `complete` tells whether all is there that should be,
    `live` that memory changes while it is read; `warnings` has a sentence for each thing about the file that its reader
    should know, and `missing` is the number of pages that it should have and has not. `machine` is what the file's
    headers say the kernel was built for, as uname -m prints it, and `utsname` the kernel's struct new_utsname in them;
    empty when they do not say.
    """

    kind: str
    word: int = 8
    complete: bool = True
    live: bool = False
    present: bytearray
    notes: bytes = b""
    large_notes: tuple[LargeNote, ...] = ()
    warnings: tuple[str, ...] = ()
    missing: int = 0
    machine: str = ""
    utsname: bytes = b""

    def warn(self, text: str) -> None:
        """Add a sentence to `warnings`."""
        self.warnings = (*self.warnings, text)

    def lacks(self, text: str) -> None:
        """Say that the dump is not complete, and why."""
        self.complete = False
        self.warn(text)

    def __enter__(self) -> Source:
        """Use as a context manager, which closes the file."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file."""

    @property
    def ranges(self) -> RangeSet:
        """The physical addresses that can be read, in bytes."""
        return bitmaps.to_addresses(bitmaps.runs(self.present, len(self.present) * 8))

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes from physical `address`; FormatError when some are missing."""
        raise NotImplementedError

    def read_pages(
        self, keep: bytes | bytearray, start: int, end: int, stored: bytes | bytearray | None = None
    ) -> bytes:
        """Return the pages of the frames in [start, end) that are set in `keep`, in order.

        `keep` must be a part of `present`. With `stored`, of which it must be a part, the other frames set there come
        too, as zeros. Safe from several threads.
        """
        parts = []
        for first, last in _core.bitmap_runs(stored or keep, start, end):
            at = first
            for begin, stop in _core.bitmap_runs(keep, first, last):
                parts += [bytes((begin - at) * PAGE_SIZE), self.read(begin * PAGE_SIZE, (stop - begin) * PAGE_SIZE)]
                at = stop
            parts.append(bytes((last - at) * PAGE_SIZE))
        return b"".join(parts)

    @cached_property
    def info(self) -> vmcoreinfo.VmcoreInfo:
        """The kernel's VMCOREINFO; FormatError when the file carries none."""
        note = notes.find(self.notes, notes.VMCOREINFO)
        if note is None:
            raise FormatError(_no_vmcoreinfo(self.notes))
        return vmcoreinfo.parse(note.desc)

    @cached_property
    def layout(self) -> KernelLayout:
        """The kernel's layout, from VMCOREINFO; FormatError when an entry or memory lacks."""
        return KernelLayout(self, self.info)


def _no_vmcoreinfo(found: bytes) -> str:
    if notes.find(found, notes.QEMU) is not None:
        return (
            "there is no VMCOREINFO note: QEMU writes one when the machine has `-device vmcoreinfo` "
            "and its kernel CONFIG_FW_CFG_SYSFS"
        )
    return "there is no VMCOREINFO note: was the kernel built without CONFIG_VMCORE_INFO (or CRASH_CORE)?"


def most_frames(pages: int) -> int:
    """Return behind which frame there can be nothing in a dump that holds so many pages."""
    return min(_MOST_FRAMES, _BITMAP_FREE + 64 * pages)


def without_nonsense(holes: RangeSet, pages: RangeSet) -> RangeSet:
    """Return frames that are memory but not in a dump, up to where there can be any when it has `pages` (frames).

    A kernel's own page structs take a 64th of its memory, and are in every dump.
    """
    end = max(_HOLES_FREE + 64 * pages.size, max((r.end for r in pages), default=0))
    return holes & RangeSet([Range(0, min(_MOST_FRAMES, end))])


def frames_bitmap(frames: RangeSet) -> bytearray:
    """Return `frames` as a bitmap; FormatError when it would be far larger than such frames can account for."""
    end = max((r.end for r in frames), default=0)
    if end > most_frames(frames.size):
        raise FormatError(f"memory at physical address {end * PAGE_SIZE:#x} is too far from the rest of it")
    return bitmaps.bitmap(frames)
