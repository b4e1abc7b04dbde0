"""The flattened format: a file that needs random access, as a stream of pieces that say where they belong.

    0       "makedumpfile" with NULs to 16 bytes, type 1, version 1 (8 bytes each), zeros up to byte 4096
    4096    a piece: offset in the file, length (8 bytes each), then that many bytes
    ...     more pieces; a later one overrides an earlier
    end     a piece whose offset and length are -1

Numbers are big endian and signed. Source: the drawing of the format in makedumpfile's IMPLEMENTATION document.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from struct import Struct

from kjump.errors import FormatError
from kjump.memory import FilePiece

SIGNATURE = b"makedumpfile"
HEADER_SIZE = 4096

_HEADER = Struct(">16sqq")
_PIECE = Struct(">qq")
_END = -1
_TYPE = 1
_VERSION = 1
_MOST = 1 << 62


def header() -> bytes:
    """Return the bytes that begin a flattened stream."""
    return _HEADER.pack(SIGNATURE, _TYPE, _VERSION).ljust(HEADER_SIZE, b"\0")


def piece_header(offset: int, length: int) -> bytes:
    """Return what stands before `length` bytes that belong at `offset` of the file."""
    return _PIECE.pack(offset, length)


def trailer() -> bytes:
    """Return the bytes that end a flattened stream."""
    return _PIECE.pack(_END, _END)


def index(pread: Callable[[int, int], bytes], size: int | None = None) -> tuple[list[FilePiece], bool]:
    """Find the pieces of a flattened stream; `pread(length, offset)` reads it, as os.pread does.

    Returns them in order of where they belong (`address` in the file that was flattened, `offset` in the stream),
    without overlaps, and whether the stream has its end. With the `size` of the stream in bytes, of a piece that
    goes beyond it only what is there is returned. FormatError when it is no flattened stream.
    """
    leading = pread(_HEADER.size, 0)
    if len(leading) < _HEADER.size or not leading.startswith(SIGNATURE):
        raise FormatError("not a flattened file: it does not begin with its signature")
    _, kind, version = _HEADER.unpack(leading)
    if (kind, version) != (_TYPE, _VERSION):
        raise FormatError(f"a flattened file of unknown type {kind}, version {version}")
    found = _Pieces()
    at = HEADER_SIZE
    while True:
        raw = pread(_PIECE.size, at)
        if len(raw) < _PIECE.size:
            return found.pieces, False
        offset, length = _PIECE.unpack(raw)
        if offset == length == _END:
            return found.pieces, True
        if offset < 0 or length <= 0 or offset + length > _MOST:
            raise FormatError(f"the flattened file has an impossible piece at byte {at}")
        there = length if size is None else min(length, size - at - _PIECE.size)
        if there > 0:
            found.put(FilePiece(offset, there, at + _PIECE.size))
        if there < length:
            return found.pieces, False
        at += _PIECE.size + length


class _Pieces:
    """Pieces sorted by where they belong; a new one takes the place of what it overlaps."""

    def __init__(self) -> None:
        self.pieces: list[FilePiece] = []
        self._starts: list[int] = []

    def put(self, new: FilePiece) -> None:
        end = new.address + new.length
        first = bisect_right(self._starts, new.address)
        if first and self.pieces[first - 1].address + self.pieces[first - 1].length > new.address:
            first -= 1
        last = bisect_left(self._starts, end)
        around: list[FilePiece] = []
        for old in self.pieces[first:last]:
            old_end = old.address + old.length
            if old.address < new.address:
                around.append(FilePiece(old.address, new.address - old.address, old.offset))
            if old_end > end:
                around.append(FilePiece(end, old_end - end, old.offset + end - old.address))
        around.append(new)
        around.sort()
        self.pieces[first:last] = around
        self._starts[first:last] = [p.address for p in around]
