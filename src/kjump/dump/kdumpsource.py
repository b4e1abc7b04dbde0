"""Physical memory in kdump-compressed files: a whole file, one part of a split dump, or all its parts together."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

from kjump import _core, _dump
from kjump.dump import bitmaps
from kjump.dump.files import Pieces, pack
from kjump.dump.source import Source, most_frames
from kjump.errors import FormatError
from kjump.formats import kdump, notes
from kjump.memory import PAGE_SHIFT, PAGE_SIZE
from kjump.ranges import Range, RangeSet

_BLOCK = 4096
"""Bytes of the bitmap between two stored counts of the bits set before."""
_MOST_AT_ONCE = 1024
_DESCRIPTORS_AT_ONCE = 1 << 16
_X86 = re.compile(r"x86_64|i[3-6]86")


class KdumpSource(Source):
    """A kdump-compressed file; pages that were left out of it cannot be read.

    If pages are set in its bitmap but their descriptor or data are missing, they are not `present`, and the dump is not
    complete.
    """

    def __init__(self, file: Pieces, fd: int, kind: str) -> None:
        """Read headers, bitmaps and descriptors of `file`; `fd` is closed with this."""
        self._fd = fd
        self._file = file
        self._pieces = pack(file.pieces)
        self.kind = kind
        self.header = header = kdump.parse(file.read(0, min(file.size, kdump.HEAD_SIZE)))
        self.word = header.word
        self.utsname, self.machine = header.utsname, header.machine
        if self.machine and not _X86.fullmatch(self.machine):
            raise FormatError(f"this dump is of machine {self.machine[:20]!r}, not of an x86")
        if header.bitmap_size * 8 > most_frames(file.stored // kdump.DESCRIPTOR.size):
            raise FormatError(f"kdump: the file is too small for bitmaps of {header.bitmap_size} bytes")
        self.memory = self._bitmap(header.first_bitmap)
        self.listed = self._bitmap(header.second_bitmap)
        """The frames that have descriptors in this file; in a split one, in any of its parts."""
        if header.split is not None:
            self.kind = f"part of a split {kind}"
            self._own: bytes | bytearray = _padded(_runs(self.listed) & RangeSet([header.split]), self.listed)
        else:
            self._own = self.listed
        blocks = range(0, len(self._own), _BLOCK)
        self._ranks = [0, *accumulate(bitmaps.count(self._own[at : at + _BLOCK]) for at in blocks)]
        self.present = bytearray(self._own)
        self._drop_missing()
        self.notes = self._notes()
        self.own_missing, self.whole, self.own_warnings = self.missing, self.complete, self.warnings
        """Missing pages, completeness and warnings of this file alone, for `SplitSource`."""
        if header.split is not None:
            part = _frames(RangeSet([header.split]))
            self.missing += bitmaps.count(self.listed) - self._ranks[-1]
            self.lacks(f"this is one part of a split dump ({part}): give all its parts together")

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _bitmap(self, where: Range) -> bytes:
        if not self._file.there.covers(where):
            raise FormatError("the file is cut off before its first page: its bitmaps are not all there")
        return self._file.read(where.start, where.size)

    def _drop_missing(self) -> None:
        """Clear in `present` the frames whose descriptor or data are not in the file."""
        lost = rank = frame = 0
        while rank < self._ranks[-1]:
            first, frame, found = _dump.advance(self._own, frame, len(self._own) * 8, _DESCRIPTORS_AT_ONCE)
            marks = _dump.missing(self._pieces, self._descriptors_by_rank(rank, found))
            lost += _dump.drop(self.present, first, frame, marks)
            rank += found
        if self.header.incomplete:
            self.lacks("its header says that it lacks pages: its writer ran out of space, or its source lacked them")
        if lost:
            self.missing = lost
            self.lacks(f"{lost} of {rank} pages are not in the file: it was cut short, or they were lost before")

    def _notes(self) -> bytes:
        header = self.header
        found: list[notes.Note] = []
        where = self._there(header.notes)
        if where.size < header.notes.size:
            self.warn("the notes are cut off")
        if where.size:
            salvaged = notes.salvage(lambda at, length: self._file.read(where.start + at, length), where.size)
            found += salvaged.notes
            self.large_notes = salvaged.large
            for problem in salvaged.problems:
                self.warn(problem)
        text = self._there(header.vmcoreinfo)
        if 0 < text.size <= notes.MOST_OF_ONE and not any(note.name == notes.VMCOREINFO for note in found):
            found.append(notes.Note(notes.VMCOREINFO, notes.NT_VMCOREINFO, self._file.read(text.start, text.size)))
        return notes.encode(found)

    def _there(self, where: Range) -> Range:
        """Return `where` (file offsets), cut at the first byte that is not in the file."""
        there = next(iter(self._file.there.within(where)), where)
        return (
            there if there.start == where.start and self._file.there.covers(there) else Range(where.start, where.start)
        )

    def _rank(self, frame: int) -> int:
        """Return the number of the file's frames below `frame`, which is the index of its descriptor."""
        block = frame // 8 // _BLOCK
        whole = self._ranks[block] + bitmaps.count(self._own[block * _BLOCK : frame // 8])
        if not frame % 8:
            return whole
        return whole + (self._own[frame // 8] & ((1 << frame % 8) - 1)).bit_count()

    def _descriptors(self, first: int, last: int) -> bytes:
        """Return the descriptors of the frames [first, last), which must all be in the file."""
        return self._descriptors_by_rank(self._rank(first), last - first)

    def _descriptors_by_rank(self, rank: int, number: int) -> bytes:
        """Return `number` descriptors from index `rank` on, with zeros for what is not in the file."""
        size = kdump.DESCRIPTOR.size
        wanted = Range.of_size(self.header.descriptors + rank * size, number * size)
        parts, at = [], wanted.start
        for item in self._file.there.within(wanted):
            parts += [bytes(item.start - at), self._file.read(item.start, item.size)]
            at = item.end
        return b"".join([*parts, bytes(wanted.end - at)])

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes from physical `address`; FormatError when a page of them was left out."""
        first, last = address >> PAGE_SHIFT, -(-(address + length) >> PAGE_SHIFT)
        parts = []
        for at in range(first, last, _MOST_AT_ONCE):
            end = min(last, at + _MOST_AT_ONCE)
            if at < 0 or end > len(self.present) * 8 or _core.bitmap_runs(self.present, at, end) != [(at, end)]:
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


class SplitSource(Source):
    """All parts of a split dump, or some of them, read as one."""

    def __init__(self, parts: Sequence[KdumpSource]) -> None:
        """Join `parts`, which are closed with this; FormatError when they are not of one dump, or overlap."""
        self._parts = sorted(parts, key=lambda part: _own_frames(part).start)
        first = self._parts[0]
        for part in self._parts[1:]:
            if part.header.identity != first.header.identity:
                raise FormatError("these parts are not of one split dump")
        for one, other in pairwise(map(_own_frames, self._parts)):
            if one.overlaps(other):
                raise FormatError(f"two parts of the split dump both have frame {other.start:#x}: one is given twice")
        self.kind = f"{len(parts)} parts of a split kdump-compressed file"
        self.word, self.machine, self.utsname = first.word, first.machine, first.utsname
        self.memory = first.memory
        told = max(self._parts, key=lambda part: len(part.notes))
        self.notes, self.large_notes = told.notes, told.large_notes
        self.present = _padded(RangeSet(r for part in parts for r in _runs(part.present)), first.listed)
        own = RangeSet(map(_own_frames, self._parts))
        others = RangeSet([Range(0, len(first.listed) * 8)]) - own
        listed = RangeSet(r for part in parts for r in _runs(part.listed))
        lacking = (listed & others).size
        if _runs(first.memory) & others:
            text = f"parts of the split dump were not given, and {lacking} pages with them"
            self.lacks(f"{text}: there are {_frames(own)}")
        self.missing = lacking + sum(part.own_missing for part in parts)
        self.complete &= all(part.whole for part in parts)
        for text in dict.fromkeys(text for part in self._parts for text in part.own_warnings):
            self.warn(text)

    def close(self) -> None:
        """Close the files."""
        for part in self._parts:
            part.close()

    def _pieces(self, start: int, end: int) -> Iterator[tuple[KdumpSource, Range]]:
        wanted = Range(start, end)
        for part in self._parts:
            item = _own_frames(part).intersection(wanted)
            if item.size:
                yield part, item

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes from physical `address`; FormatError when a page of them was left out."""
        start, end = address >> PAGE_SHIFT, -(-(address + length) >> PAGE_SHIFT)
        found = [part.read(r.start * PAGE_SIZE, r.size * PAGE_SIZE) for part, r in self._pieces(start, end)]
        data = b"".join(found)
        if len(data) != (end - start) * PAGE_SIZE:
            raise FormatError(f"not all memory at physical address {address:#x} is in these parts of the dump")
        return data[address % PAGE_SIZE :][:length]

    def read_pages(
        self, keep: bytes | bytearray, start: int, end: int, stored: bytes | bytearray | None = None
    ) -> bytes:
        """Return pages as `Source.read_pages`, each from the part that has it."""
        if stored is not None:
            return super().read_pages(keep, start, end, stored)
        return b"".join(part.read_pages(keep, r.start, r.end) for part, r in self._pieces(start, end))


def _own_frames(part: KdumpSource) -> Range:
    """Return the range of frames that a file covers: that of its part, or all frames."""
    return part.header.split or Range(0, len(part.present) * 8)


def _runs(bits: bytes | bytearray) -> RangeSet:
    return bitmaps.runs(bits, len(bits) * 8)


def _padded(frames: RangeSet, like: bytes) -> bytearray:
    """Return a bitmap of `frames` with the length of the bitmap `like`, in which all of them must fit."""
    return bitmaps.bitmap(frames).ljust(len(like), b"\0")[: len(like)]


def _frames(items: RangeSet) -> str:
    return "frames " + ", ".join(f"{r.start:#x} to {r.end - 1:#x}" for r in items)
