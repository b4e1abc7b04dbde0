"""Random access to a file's contents, whether the file is plain, flattened, or a compressed stream.

Each class has `read(offset, length)` and `size`, in bytes; those with a file descriptor (`Pieces`) can be read by the
native core as well. Reading is safe from several threads.
"""

from __future__ import annotations

import functools
import os
import stat
import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Protocol

from kjump import _core
from kjump.errors import FormatError
from kjump.formats import flattened, seekable
from kjump.memory import FileMemory, FilePiece
from kjump.ranges import Range, RangeSet

_LARGEST_FRAME = 16 << 20
_FRAMES_KEPT = 4
_MOST_ZEROS = 64 << 20
"""The largest read of zeros from gaps of a flattened file, in bytes beyond the file's own size."""
_NO_SIZE = 1 << 62


class RandomAccess(Protocol):
    """Contents with random access."""

    @property
    def size(self) -> int:
        """The offset behind the last byte."""
        ...

    @property
    def there(self) -> RangeSet:
        """The offsets of the bytes that can be read."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; FormatError when some of them are not there."""
        ...


class Pieces:
    """Contents that lie in pieces in the file `fd`, which must stay open as long as this is used."""

    def __init__(self, fd: int, pieces: Sequence[FilePiece], *, sparse: bool = False) -> None:
        """Use `pieces`: `address` of a piece is its offset in the contents, `offset` that in `fd`.

        With `sparse` the bytes between pieces are zeros.
        """
        self.fd = fd
        self._sparse = sparse
        self._memory = FileMemory(fd, pieces)
        self.pieces = self._memory.pieces
        self.stored = sum(p.length for p in self.pieces)
        """The sum of the pieces' lengths in bytes."""

    @property
    def there(self) -> RangeSet:
        """The offsets of the bytes that can be read."""
        return RangeSet([Range(0, self.size)]) if self._sparse else self._memory.ranges

    @property
    def is_whole(self) -> bool:
        """Whether the native core, which reads pieces but no gaps, can read all of the contents."""
        return not self._sparse or (len(self._memory.ranges) <= 1 and not self.size > self.stored)

    @property
    def size(self) -> int:
        """The offset behind the last byte."""
        return self.pieces[-1].address + self.pieces[-1].length if self.pieces else 0

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; FormatError when some of them are not there."""
        try:
            if self._sparse and offset + length <= self.size:
                return self._read_sparse(offset, length)
            return self._memory.read(offset, length)
        except FormatError:
            raise FormatError(f"the file is cut off: {length} bytes at {offset:#x} are not all there") from None

    def _read_sparse(self, offset: int, length: int) -> bytes:
        if length > self.stored + _MOST_ZEROS:
            raise FormatError(f"{length} bytes are more than such a file can have")
        wanted = RangeSet([Range.of_size(offset, length)])
        parts, at = [], offset
        for item in wanted & self._memory.ranges:
            parts += [bytes(item.start - at), self._memory.read(item.start, item.size)]
            at = item.end
        return b"".join([*parts, bytes(offset + length - at)])

    def within(self, offset: int, length: int) -> list[FilePiece]:
        """Return the pieces of `fd` that hold `length` bytes from `offset`; missing bytes are left out."""
        return [
            piece
            for part in self._memory.ranges.within(Range.of_size(offset, length))
            for piece in self._memory.locate(part.start, part.size)
        ]


def _whole_beginning(file: RandomAccess) -> int:
    """Return the number of bytes from the beginning of `file` up to its first gap."""
    first = file.there.containing(0)
    return first.end if first is not None else 0


def pack(pieces: Iterable[FilePiece]) -> bytes:
    """Return pieces as the native core takes them."""
    return b"".join(struct.pack("=3Q", p.address, p.length, p.offset) for p in pieces)


def plain(fd: int, start: int = 0, length: int | None = None) -> Pieces:
    """Return the contents of the open file `fd`, or `length` bytes of it from offset `start`."""
    if length is None:
        length = max(0, _size(fd) - start)
    return Pieces(fd, [FilePiece(0, length, start)])


def _size(fd: int) -> int:
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        return os.lseek(fd, 0, os.SEEK_END)
    if stat.S_ISREG(status.st_mode) and status.st_size:
        return status.st_size
    # Files in /proc may have contents although their size is 0.
    return _NO_SIZE if os.pread(fd, 1, 0) else 0


def unflattened(fd: int) -> tuple[Pieces, bool]:
    """Return the contents of a flattened file, and whether the file is complete.

    Bytes between the pieces of a complete file are zeros; those of a truncated file are unknown.
    """
    pieces, complete = flattened.index(lambda length, offset: os.pread(fd, length, offset), _size(fd))
    return Pieces(fd, pieces, sparse=complete), complete


class SeekableStream:
    """The contents of a zstd stream in the seekable format."""

    def __init__(self, file: RandomAccess) -> None:
        """Read the seek table at the end of `file`; without one the stream consists of the complete frames in the file.

        `complete` tells whether there is a seek table. FormatError when there is neither a table nor a complete frame.
        """
        self._file = file
        try:
            self.complete = True
            table = self._table(file)
        except FormatError as error:
            self.complete = False
            table = seekable.walk(file.read, _whole_beginning(file))
            if not len(table):
                raise error from None
        self._take(table)
        self._frame = functools.lru_cache(_FRAMES_KEPT)(self._decompress)

    @staticmethod
    def _table(file: RandomAccess) -> seekable.SeekTable:
        """Return the seek table at the end of `file`; FormatError when there is none that matches the file."""
        footer = file.read(max(0, file.size - seekable.FOOTER_SIZE), min(file.size, seekable.FOOTER_SIZE))
        length = seekable.table_length(footer)
        if length > file.size:
            raise FormatError("the seek table is larger than the file")
        table = seekable.SeekTable.decode(file.read(file.size - length, length))
        if table.compressed_length + length != file.size:
            raise FormatError("the frames of the seek table are not as long as the file")
        return table

    @property
    def there(self) -> RangeSet:
        """The offsets of the bytes that can be read; damaged frames are found only when they are read."""
        return RangeSet([Range(0, self.size)])

    def _take(self, table: seekable.SeekTable) -> None:
        entries = list(struct.iter_unpack("<3I", table.entries))
        if any(max(sizes) > _LARGEST_FRAME for *sizes, _ in entries):
            raise FormatError(f"a frame of the stream has more than {_LARGEST_FRAME} bytes: decompress it (zstd -d)")
        self._entries = entries
        self._offsets = [0, *accumulate(compressed for compressed, _, _ in entries)]
        self._starts = [0, *accumulate(size for _, size, _ in entries)]

    @property
    def size(self) -> int:
        """The decompressed size of the stream in bytes."""
        size: int = self._starts[-1]
        return size

    def _decompress(self, index: int) -> bytes:
        compressed, size, checksum = self._entries[index]
        data = self._file.read(self._offsets[index], compressed)
        try:
            return _core.decompress_frame(data, size, checksum)
        except _core.Damaged as error:
            raise FormatError(f"frame {index}: {error}") from None

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; FormatError when some are not there, or a frame is damaged."""
        if offset + length > self.size:
            raise FormatError(f"the stream ends before byte {offset + length:#x}")
        parts = []
        index = bisect_right(self._starts, offset) - 1
        while length > 0:
            start = offset - self._starts[index]
            part = self._frame(index)[start : start + length]
            parts.append(part)
            offset += len(part)
            length -= len(part)
            index += 1
        return parts[0] if len(parts) == 1 else b"".join(parts)
