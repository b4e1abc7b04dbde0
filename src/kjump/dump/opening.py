"""Opens dumps of all formats as a Source.

The formats are ELF vmcores (also /proc/vmcore and /proc/kcore), kdump-compressed files and kjump images, each of them
flattened or not. `open_source` recognizes them by their first bytes; `open_sources` joins the parts of a split dump.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from kjump.dump.elfsource import ElfSource
from kjump.dump.files import Pieces, SeekableStream, plain, unflattened
from kjump.dump.kdumpsource import KdumpSource, SplitSource
from kjump.dump.source import Source
from kjump.errors import FormatError, HostError
from kjump.formats import elf, flattened, kdump
from kjump.formats.superblock import HOLDS_AN_IMAGE, SUPERBLOCK_SIZE, State, Superblock
from kjump.memory import FilePiece

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def is_split_part(path: str | Path) -> bool:
    """Tell whether `path` is a part of a split kdump-compressed file; False also when it cannot be read."""
    if not Path(path).is_file():
        return False  # opening a pipe would wait for its other end
    try:
        with Path(path).open("rb") as file:
            return kdump.parse(file.read(kdump.HEAD_SIZE)).split is not None
    except (OSError, FormatError):
        return False


def open_sources(paths: Sequence[str | Path]) -> Source:
    """Open the dump at the one path, or the parts of a split one; errors as of `open_source`.

    FormatError also when several files are not parts of one split dump.
    """
    if len(paths) == 1:
        return open_source(paths[0])
    with contextlib.ExitStack() as stack:
        parts = []
        for path in paths:
            part = stack.enter_context(open_source(path))
            if not isinstance(part, KdumpSource) or part.header.split is None:
                raise FormatError(f"{path} is no part of a split dump: give one dump, or all parts of one")
            parts.append(part)
        joined = SplitSource(parts)
        stack.pop_all()
        return joined


def open_source(path: str | Path) -> Source:
    """Open the dump at `path`; FormatError when its format is not known, HostError when it cannot be opened."""
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
        stream = SeekableStream(file)
        found = ElfSource(stream, fd, f"{wrapping}kjump image")
        if not stream.complete:
            found.lacks("the file was cut short: it has no seek table")
    else:
        raise FormatError("neither an ELF vmcore, a kdump-compressed file, a flattened one, nor a kjump image")
    if not any(found.present):
        raise FormatError(
            "the file was cut short before its first page" if found.missing else "there is no memory in it"
        )
    if not complete:
        found.lacks("the file was cut short: the flattened format's end is missing")
    return found


def _behind_superblock(file: Pieces) -> Pieces:
    """Return the image behind the superblock of a device or target file; other files are returned unchanged."""
    try:
        superblock = Superblock.unpack(file.read(0, SUPERBLOCK_SIZE))
    except FormatError:
        return file
    if superblock.state not in HOLDS_AN_IMAGE | {State.CONSUMED}:
        raise FormatError(f"the target holds no complete image; its state is {superblock.state.name.lower()}")
    return Pieces(file.fd, _shift(file, superblock.image_offset, superblock.image_length))


def _shift(file: Pieces, start: int, length: int) -> list[FilePiece]:
    return [FilePiece(p.address - start, p.length, p.offset) for p in file.within(start, length)]
