"""Physical memory in a kdump-compressed file."""

from __future__ import annotations

import os
from itertools import accumulate

from kjump import _core, _dump
from kjump.dump import bitmaps
from kjump.dump.files import Pieces, pack
from kjump.dump.source import Source
from kjump.errors import FormatError
from kjump.formats import kdump, notes
from kjump.memory import PAGE_SHIFT, PAGE_SIZE
from kjump.ranges import Range, RangeSet

_BLOCK = 4096
"""Bytes of the bitmap between two counts of what came before."""
_MOST_NOTES = 64 << 20
_MOST_AT_ONCE = 1024


class KdumpSource(Source):
    """A kdump-compressed file; what was left out of it cannot be read."""

    def __init__(self, file: Pieces, fd: int, kind: str) -> None:
        """Read headers and bitmaps of `file`; `fd` is closed with this."""
        self._fd = fd
        self._file = file
        self._pieces = pack(file.pieces)
        self.kind = kind
        self.header = header = kdump.parse(file.read(0, min(file.size, kdump.HEAD_SIZE)))
        self.word = header.word
        self.complete = not header.incomplete
        self.present = bytearray(file.read(header.second_bitmap.start, header.second_bitmap.size))
        self.memory = file.read(header.first_bitmap.start, header.first_bitmap.size)
        if header.split is not None:
            self._cut(header.split)
        blocks = range(0, len(self.present), _BLOCK)
        self._ranks = [0, *accumulate(bitmaps.count(self.present[at : at + _BLOCK]) for at in blocks)]
        self._check_descriptors()
        self.notes = self._notes()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _cut(self, part: Range) -> None:
        """Forget the frames outside of what this part of a split file has."""
        keep = bitmaps.runs(self.present, len(self.present) * 8)
        cut = bitmaps.bitmap(RangeSet(r.intersection(part) for r in keep))
        self.present = cut.ljust(len(self.present), b"\0")

    def _check_descriptors(self) -> None:
        end = self.header.descriptors + self._ranks[-1] * kdump.DESCRIPTOR.size
        if end > self._file.size and self.complete:
            raise FormatError(f"the file is cut off: descriptors of {self._ranks[-1]} pages are not all there")

    def _notes(self) -> bytes:
        header = self.header
        if max(header.notes.size, header.vmcoreinfo.size) > _MOST_NOTES:
            raise FormatError("kdump: the notes are larger than any kernel's")
        found = b""
        if header.notes.size:
            data = self._file.read(header.notes.start, header.notes.size)
            found = notes.encode(notes.iterate(data))
        if header.vmcoreinfo.size and notes.find(found, notes.VMCOREINFO) is None:
            text = self._file.read(header.vmcoreinfo.start, header.vmcoreinfo.size)
            found += notes.Note(notes.VMCOREINFO, notes.NT_VMCOREINFO, text).encode()
        return found

    def _rank(self, frame: int) -> int:
        """Return how many frames of the file are below `frame`: the number of its descriptor."""
        block = frame // 8 // _BLOCK
        whole = self._ranks[block] + bitmaps.count(self.present[block * _BLOCK : frame // 8])
        if not frame % 8:
            return whole
        return whole + (self.present[frame // 8] & ((1 << frame % 8) - 1)).bit_count()

    def _descriptors(self, first: int, last: int) -> bytes:
        """Return the descriptors of the frames [first, last), which must all be there."""
        rank = self._rank(first)
        size = kdump.DESCRIPTOR.size
        at, length = self.header.descriptors + rank * size, (last - first) * size
        if not self.complete:
            there = max(0, min(length, self._file.size - at))
            return self._file.read(at, there).ljust(length, b"\0")
        return self._file.read(at, length)

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes from physical `address`; FormatError when a page of them was left out."""
        first, last = address >> PAGE_SHIFT, -(-(address + length) >> PAGE_SHIFT)
        parts = []
        for at in range(first, last, _MOST_AT_ONCE):
            end = min(last, at + _MOST_AT_ONCE)
            if end > len(self.present) * 8 or _core.bitmap_runs(self.present, at, end) != [(at, end)]:
                raise FormatError(f"not all memory at physical address {address:#x} is in this dump")
            parts.append(_dump.read_kdump(self._fd, self._pieces, self._descriptors(at, end), at))
        start = address % PAGE_SIZE
        return b"".join(parts)[start : start + length]

    def read_pages(
        self, keep: bytes | bytearray, start: int, end: int, stored: bytes | bytearray | None = None
    ) -> bytes:
        """Return pages as `Source.read_pages`, decompressed natively."""
        if stored is not None:
            return super().read_pages(keep, start, end, stored)
        found = (self._descriptors(a, b) for a, b in _core.bitmap_runs(keep, start, end))
        return _dump.read_kdump(self._fd, self._pieces, b"".join(found), start)
