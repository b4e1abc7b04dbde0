"""Physical memory, whoever holds it: a crashed or parked kernel's, an emulator's, plain bytes in a test.

Everything that looks at a kernel's memory does so through `PhysicalMemory`. Addresses are physical, in bytes.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kjump.errors import FormatError
from kjump.ranges import Range, RangeSet

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
_WORTH_A_MAP = 256 << 10


class PhysicalMemory(Protocol):
    """What can be read of a machine's physical memory."""

    @property
    def ranges(self) -> RangeSet:
        """The physical addresses (bytes) that can be read."""
        ...

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes from physical `address`; FormatError when any of them is not there."""
        ...


class BytesMemory:
    """Physical memory in one bytes-like object that begins at address `base`; for tests and small pieces."""

    def __init__(self, data: bytes | bytearray | memoryview, base: int = 0) -> None:
        """Take `data` as the memory from physical address `base` on; it is not copied."""
        self._data = data
        self._range = Range.of_size(base, len(data))

    @property
    def ranges(self) -> RangeSet:
        """The one range that the data fills."""
        return RangeSet([self._range])

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes from physical `address`; FormatError outside the data."""
        if length and not self._range.covers(Range.of_size(address, length)):
            raise FormatError(f"no memory at physical address {address:#x}, {length} bytes")
        start = address - self._range.start
        return bytes(self._data[start : start + length])


@dataclass(frozen=True, order=True, slots=True)
class FilePiece:
    """`length` bytes of memory from physical `address` on, kept in a file at `offset` (all in bytes)."""

    address: int
    length: int
    offset: int


class FileMemory:
    """Physical memory that lies in pieces in a file: an ELF vmcore, /proc/vmcore, /dev/mem."""

    def __init__(self, fd: int, pieces: Sequence[FilePiece], *, mapped: bool = False) -> None:
        """Read through `fd`, which stays the caller's to close; `pieces` must not overlap.

        With `mapped` what is large is read through mmap, if the file can be mapped: good for /proc/vmcore, which the
        kernel otherwise maps page by page for itself; not for a file that may be cut off meanwhile.
        """
        self.fd = fd
        self._mapped = mapped
        self.pieces = tuple(sorted(p for p in pieces if p.length))
        self._starts = [p.address for p in self.pieces]
        self._ranges = RangeSet(Range.of_size(p.address, p.length) for p in self.pieces)

    @property
    def ranges(self) -> RangeSet:
        """The physical addresses that the pieces hold."""
        return self._ranges

    def piece_at(self, address: int) -> FilePiece:
        """Return the whole piece in which `address` lies; FormatError when there is none."""
        piece = self.pieces[max(0, bisect_right(self._starts, address) - 1)] if self.pieces else None
        if piece is None or not piece.address <= address < piece.address + piece.length:
            raise FormatError(f"no memory at physical address {address:#x}")
        return piece

    def locate(self, address: int, length: int) -> list[FilePiece]:
        """Return where `length` bytes from `address` lie in the file, in order; FormatError if some lack."""
        found: list[FilePiece] = []
        at, end = address, address + length
        index = max(0, bisect_right(self._starts, address) - 1)
        while at < end:
            piece = self.pieces[index] if index < len(self.pieces) else None
            if piece is None or not piece.address <= at < piece.address + piece.length:
                raise FormatError(f"no memory at physical address {at:#x} ({end - at} bytes of {length} are missing)")
            size = min(end, piece.address + piece.length) - at
            found.append(FilePiece(at, size, piece.offset + at - piece.address))
            at += size
            index += 1
        return found

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes from physical `address`; FormatError when some are missing or cut off."""
        parts = []
        for piece in self.locate(address, length):
            data = self._read_mapped(piece) or os.pread(self.fd, piece.length, piece.offset)
            while len(data) < piece.length:
                more = os.pread(self.fd, piece.length - len(data), piece.offset + len(data))
                if not more:
                    raise FormatError(f"memory at physical address {piece.address:#x} is cut off in the file")
                data += more
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_mapped(self, piece: FilePiece) -> bytes:
        """Return a large piece, or nothing when it must be read otherwise."""
        if not self._mapped or piece.length < _WORTH_A_MAP:
            return b""
        skipped = piece.offset % mmap.ALLOCATIONGRANULARITY
        try:
            with mmap.mmap(
                self.fd, skipped + piece.length, prot=mmap.PROT_READ, offset=piece.offset - skipped
            ) as memory:
                return memory[skipped:]
        except (OSError, ValueError):  # the latter when the file ends before the piece does
            return b""
