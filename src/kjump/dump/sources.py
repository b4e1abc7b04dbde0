"""Where a dump comes from: anything that holds a kernel's memory, behind one interface.

ELF vmcores (also /proc/vmcore and /proc/kcore), kdump-compressed files, kjump images; each of them flattened or
not. `open_source` tells them apart by their first bytes.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from types import TracebackType

from kjump import _core
from kjump.dump import pages
from kjump.dump.files import Pieces, RandomAccess, SeekableStream, plain, unflattened
from kjump.dump.kernel import KernelLayout
from kjump.errors import FormatError, HostError
from kjump.formats import elf, flattened, kdump, notes, vmcoreinfo
from kjump.formats.superblock import HOLDS_AN_IMAGE, SUPERBLOCK_SIZE, State, Superblock
from kjump.memory import PAGE_SIZE, FilePiece
from kjump.ranges import RangeSet

_BITMAP_FREE = 1 << 28
"""A bitmap of so many frames (1 TiB of memory, 32 MiB) is made for any dump, a larger one for 64 frames a page."""
_MOST_FRAMES = 1 << 36
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class Source:
    """Physical memory in a file: what all kinds have in common.

    `kind` names the format, `notes` are the ELF notes it carries, `present` is a bitmap of the page frames it
    holds whole, `complete` tells whether its writer finished, `live` that memory changes while it is read.
    """

    kind: str
    word: int = 8
    complete: bool = True
    live: bool = False
    present: bytearray
    notes: bytes = b""

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
        return pages.to_addresses(pages.runs(self.present, len(self.present) * 8))

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
            raise FormatError("there is no VMCOREINFO note: was the kernel built without CONFIG_VMCORE_INFO?")
        return vmcoreinfo.parse(note.desc)

    @cached_property
    def layout(self) -> KernelLayout:
        """The kernel's layout, from VMCOREINFO; FormatError when an entry or memory lacks."""
        return KernelLayout(self, self.info)


def frames_bitmap(frames: RangeSet) -> bytearray:
    """Return `frames` as a bitmap; FormatError when it would be far larger than such frames can account for."""
    end = max((r.end for r in frames), default=0)
    if end > _MOST_FRAMES or end > _BITMAP_FREE + 64 * frames.size:
        raise FormatError(f"memory at physical address {end * PAGE_SIZE:#x} is too far from the rest of it")
    return pages.bitmap(frames)


def open_source(path: str | Path) -> Source:
    """Open whatever dump is at `path`; FormatError when it is none that we know, HostError when it cannot be opened."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"cannot open {path}: {error.strerror}") from None
    try:
        return _open(fd, str(path))
    except OSError as error:
        os.close(fd)
        raise HostError(f"cannot read {path}: {error.strerror}") from None
    except FormatError as error:
        os.close(fd)
        raise FormatError(f"{path}: {error}") from None
    except BaseException:
        os.close(fd)
        raise


def _open(fd: int, path: str) -> Source:
    from kjump.dump.elfsource import ElfSource
    from kjump.dump.kdumpsource import KdumpSource

    file, complete, wrapping = plain(fd), True, ""
    if os.pread(fd, len(flattened.SIGNATURE), 0) == flattened.SIGNATURE:
        file, complete = unflattened(fd)
        wrapping = "flattened "
    file = _behind_superblock(file)
    magic = file.read(0, min(file.size, 8))
    found: Source
    if magic.startswith(elf.MAGIC):
        found = ElfSource(file, fd, f"{wrapping}ELF vmcore", live=os.path.realpath(path) == "/proc/kcore")
    elif magic == kdump.SIGNATURE:
        found = KdumpSource(file, fd, f"{wrapping}kdump-compressed file")
    elif magic.startswith(_ZSTD_MAGIC):
        found = ElfSource(_stream(file), fd, f"{wrapping}kjump image")
    else:
        raise FormatError("neither an ELF vmcore, a kdump-compressed file, a flattened one, nor a kjump image")
    found.complete = found.complete and complete
    return found


def _stream(file: RandomAccess) -> SeekableStream:
    return SeekableStream(file)


def _behind_superblock(file: Pieces) -> Pieces:
    """Return the image on a device or in a target file, which begins behind a superblock; any other file as it is."""
    try:
        superblock = Superblock.unpack(file.read(0, SUPERBLOCK_SIZE))
    except FormatError:
        return file
    if superblock.state not in HOLDS_AN_IMAGE | {State.CONSUMED}:
        raise FormatError(f"the target holds no complete image; its state is {superblock.state.name.lower()}")
    return Pieces(file.fd, _shift(file, superblock.image_offset, superblock.image_length))


def _shift(file: Pieces, start: int, length: int) -> list[FilePiece]:
    return [FilePiece(p.address - start, p.length, p.offset) for p in file.within(start, length)]
