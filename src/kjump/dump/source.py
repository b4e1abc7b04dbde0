"""Physical memory in a file: the base class of all kinds of dumps."""

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
"""Frames of a bitmap that is made for any dump (256 GiB of memory, 8 MiB); a larger one needs a page for 64 frames."""
_HOLES_FREE = 1 << 24
"""The same for memory that is not in the dump (64 GiB of memory, 2 MiB); what exceeds it is ignored."""
_MOST_FRAMES = 1 << 36


class Source:
    """Physical memory in a file: the base class of all kinds of dumps.

    `kind` names the format; `notes` are the file's ELF notes, `large_notes` those that are not held in memory.
    `present` is a bitmap of the page frames that can be read. `complete` tells that no page is missing, `live` that
    memory changes while it is read; `warnings` has a sentence for each problem of the file, and `missing` is the number
    of pages that the file should contain and does not. `machine` is the architecture in the file's headers, as uname -m
    prints it, and `utsname` the kernel's struct new_utsname in them; both are empty when the headers lack them.
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
        """Mark the dump as not complete, with the reason as a warning."""
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

        `keep` must be a subset of `present`. With `stored`, a superset of `keep`, the other frames set there are
        returned too, as zeros. Safe from several threads.
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
        """The kernel's layout, from VMCOREINFO; FormatError when an entry or memory is missing."""
        return KernelLayout(self, self.info)


def _no_vmcoreinfo(found: bytes) -> str:
    if notes.find(found, notes.QEMU) is not None:
        return (
            "there is no VMCOREINFO note: QEMU writes one when the machine has `-device vmcoreinfo` "
            "and its kernel CONFIG_FW_CFG_SYSFS"
        )
    return "there is no VMCOREINFO note: was the kernel built without CONFIG_VMCORE_INFO (or CRASH_CORE)?"


def most_frames(pages: int) -> int:
    """Return an upper bound for the frame numbers in a dump that holds `pages` pages."""
    return min(_MOST_FRAMES, _BITMAP_FREE + 64 * pages)


def without_nonsense(holes: RangeSet, pages: RangeSet) -> RangeSet:
    """Return the plausible part of `holes`, the frames that are memory but not in a dump that has the frames `pages`.

    A kernel's page structs take 1/64 of its memory and are in every dump, which limits the size of memory.
    """
    end = max(_HOLES_FREE + 64 * pages.size, max((r.end for r in pages), default=0))
    return holes & RangeSet([Range(0, min(_MOST_FRAMES, end))])


def frames_bitmap(frames: RangeSet) -> bytearray:
    """Return `frames` as a bitmap; FormatError when it would be implausibly large for that number of frames."""
    end = max((r.end for r in frames), default=0)
    if end > most_frames(frames.size):
        raise FormatError(f"memory at physical address {end * PAGE_SIZE:#x} is too far from the rest of it")
    return bitmaps.bitmap(frames)
