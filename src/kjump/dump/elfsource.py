"""Physical memory in an ELF core: a vmcore file, /proc/vmcore, /proc/kcore, or the stream of a kjump image."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import nullcontext

from kjump import _dump
from kjump.dump import bitmaps
from kjump.dump.files import Pieces, RandomAccess, pack
from kjump.dump.source import Source, frames_bitmap
from kjump.errors import FormatError
from kjump.formats import elf, notes
from kjump.memory import PAGE_SIZE, FilePiece
from kjump.ranges import Range, RangeSet

_MOST_ZEROS = 64 << 20
"""Bytes by which the memory in the program headers may exceed the bytes that the file stores."""
_NO_ADDRESS = 1 << 63
"""Segments of /proc/kcore that are not RAM have a physical address above this (-1)."""
_KERNEL_MAP_ALIGN = 1 << 30
"""Kernels map physical address 0 at a linear address that is a multiple of this."""
_MACHINES = {elf.EM_386: "i686", elf.EM_X86_64: "x86_64"}


class ElfSource(Source):
    """An ELF core. Memory of a PT_LOAD beyond its size in the file (p_memsz > p_filesz) reads as zeros.

    A page that PT_LOADs cover only in part is `present`, and the rest of it reads as zeros. A page whose contents are
    missing because the file is truncated is not `present`, and the core is not complete.
    """

    def __init__(self, file: RandomAccess, fd: int, kind: str, *, live: bool = False) -> None:
        """Read the headers of `file`; `fd` is closed with this."""
        self._fd = fd
        self._file = file
        self.kind = kind
        self.live = live
        # An open /proc/kcore has one buffer, which the kernel does not lock against concurrent reads.
        self._turn = threading.Lock() if live else nullcontext()
        core = read_headers(file)
        self.word = 4 if core.header.machine == elf.EM_386 else 8
        self.machine = _MACHINES[core.header.machine]
        self.notes = notes.encode(self._notes(core))
        _refuse_other_cores(core, self.notes)
        if _was_incomplete(self.notes):
            self.lacks("the dump that this was made of was not complete")
        self.loads = tuple(p for p in core.loads if p.paddr < _NO_ADDRESS)
        self._take_memory()

    def _take_memory(self) -> None:
        """Find the memory that each part of the file holds, and the memory that is missing."""
        file, there = self._file, _there(self._file)
        in_file = _disjoint(piece for load in self.loads for piece in _pieces(load, there))
        self._memory = Lookup(in_file)
        known = RangeSet(Range.of_size(p.address, p.length) for p in in_file)
        stored = file.stored if isinstance(file, Pieces) else file.size
        if known.size > stored + _MOST_ZEROS and not self.live:
            raise FormatError(f"the program headers have {known.size} bytes of memory, more than the file")
        lost = RangeSet(p.physical for p in self.loads) - known
        frames = _frames_around(known) - _frames_around(lost)
        self._partial = frames - bitmaps.to_frames(known)
        self._zeros = RangeSet(Range.of_size(p.paddr, max(p.filesz, p.memsz)) for p in self.loads)
        self._zeros = (self._zeros | bitmaps.to_addresses(self._partial)) - known
        self.present = frames_bitmap(frames)
        native = isinstance(file, Pieces) and file.is_whole
        self._native = pack(_through(file, in_file)) if native and isinstance(file, Pieces) else None
        if lost:
            self.missing = (_frames_around(lost) | frames).size - frames.size
            total = self.missing + frames.size
            self.lacks(f"the file was cut short: {self.missing} of {total} pages are not in it")
        if self._partial:
            self.warn(f"{self._partial.size} pages are in the file in part: the rest of them reads as zeros")

    def _notes(self, core: elf.ElfFile) -> Iterator[notes.Note]:
        """Yield the notes of all PT_NOTEs that can be read."""
        for header in core.notes:
            if not header.filesz:
                continue
            there = next(iter(_there(self._file).within(header.data)), Range(0, 0))
            if there.start != header.offset or there.size < header.filesz:
                self.lacks("the file was cut short: its notes are not all there")
            if there.start != header.offset:
                continue
            found = self._salvaged(there, 8 if header.align == 8 else 4)
            for problem in found.problems:
                self.warn(problem)
            yield from found.notes
            self.large_notes = (*self.large_notes, *found.large)

    def _salvaged(self, where: Range, align: int) -> notes.Salvage:
        """Read notes with their program header's alignment, or with the other one (4 or 8) if that yields more."""

        def read(at: int, length: int) -> bytes:
            return self._file.read(where.start + at, length)

        found = notes.salvage(read, where.size, align)
        if found.problems:
            other = notes.salvage(read, where.size, 12 - align)
            return max(found, other, key=lambda some: (len(some.notes), -len(some.problems)))
        return found

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    @property
    def holes(self) -> RangeSet:
        """Physical addresses that are memory but were left out when the file was written."""
        return self._zeros

    def virtual(self, address: int) -> int:
        """Return the virtual address of physical `address` in the program headers; 0 when they have none."""
        for load in self.loads:
            if load.vaddr and load.paddr <= address < load.paddr + max(load.filesz, load.memsz):
                return load.vaddr + address - load.paddr
        return 0

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes from physical `address`; FormatError when some are missing."""
        parts = []
        while length > 0:
            piece = self._memory.find(address)
            if piece is not None:
                size = min(length, piece.address + piece.length - address)
                with self._turn:
                    parts.append(self._file.read(piece.offset + address - piece.address, size))
            else:
                hole = self._zeros.containing(address)
                if hole is None:
                    raise FormatError(f"no memory at physical address {address:#x}")
                size = min(length, hole.end - address)
                parts.append(bytes(size))
            address += size
            length -= size
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_pages(
        self, keep: bytes | bytearray, start: int, end: int, stored: bytes | bytearray | None = None
    ) -> bytes:
        """Return pages as `Source.read_pages`; files with a descriptor are read by the native core."""
        if self._native is None or not isinstance(self._file, Pieces) or any(self._partial.within(Range(start, end))):
            return super().read_pages(keep, start, end, stored)
        with self._turn:
            return _dump.read_pages(self._file.fd, self._native, keep, stored or keep, start, end)


class Lookup:
    """Finds the piece that holds an address."""

    def __init__(self, pieces: list[FilePiece]) -> None:
        """Take sorted pieces that do not overlap."""
        self._pieces = pieces
        self._starts = [p.address for p in pieces]

    def find(self, address: int) -> FilePiece | None:
        """Return the piece in which `address` lies, or None."""
        from bisect import bisect_right

        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        piece = self._pieces[index]
        return piece if address < piece.address + piece.length else None


def read_headers(file: RandomAccess) -> elf.ElfFile:
    """Return header and program headers, which are at e_phoff; FormatError when the file is no core."""
    header = elf.parse_header(file.read(0, min(file.size, elf.HEADER_SIZE)))
    if (where := header.section_zero) is not None:
        header = elf.with_section_zero(header, file.read(where.start, where.size))
    if header.type != elf.ET_CORE:
        raise FormatError("this ELF file is no core")
    if header.machine not in (elf.EM_386, elf.EM_X86_64):
        raise FormatError(f"this core is of machine {header.machine}, not of an x86")
    table = header.table
    return elf.ElfFile(header, elf.parse_program_headers(header, file.read(table.start, table.size)))


def _refuse_other_cores(core: elf.ElfFile, found: bytes) -> None:
    """Raise FormatError for a core that is not of a machine's memory."""
    kinds = {note.type for note in notes.iterate(found) if note.name == notes.CORE}
    of_process = {notes.NT_AUXV, notes.NT_FILE, notes.NT_SIGINFO} & kinds
    named = notes.NT_PRPSINFO in kinds and notes.NT_TASKSTRUCT not in kinds  # /proc/kcore has both
    if (of_process or named) and notes.find(found, notes.VMCOREINFO) is None:
        raise FormatError("this is the core of a process, not of a kernel")
    loads = [load for load in core.loads if load.filesz]
    if any(load.paddr for load in core.loads):
        return
    if len(loads) > 1 or any(load.vaddr % _KERNEL_MAP_ALIGN for load in loads):
        raise FormatError("this core has no physical addresses: they are all 0 in its program headers")


def _was_incomplete(found: bytes) -> bool:
    """Tell whether a KJUMP note says that the dump was made from an incomplete one."""
    note = notes.find(found, notes.KJUMP, notes.NT_KJUMP_DUMP)
    try:
        about = {} if note is None else json.loads(note.desc)
    except (ValueError, RecursionError):
        return False
    return isinstance(about, dict) and about.get("complete") is False


def _there(file: RandomAccess) -> RangeSet:
    """Return the offsets of `file` that can be read."""
    return file.there if isinstance(file, Pieces) else RangeSet([Range(0, file.size)])


def _pieces(load: elf.ProgramHeader, there: RangeSet) -> Iterator[FilePiece]:
    """Yield the pieces of a PT_LOAD's contents that are in the file (at offsets `there`)."""
    for part in there.within(load.data):
        yield FilePiece(load.paddr + part.start - load.offset, part.size, part.start)


def _frames_around(addresses: RangeSet) -> RangeSet:
    """Return the page frames that contain at least one byte of `addresses` (physical)."""
    return bitmaps.to_frames(RangeSet(r.aligned_outside(PAGE_SIZE) for r in addresses))


def _disjoint(found: Iterable[FilePiece]) -> list[FilePiece]:
    """Return the pieces sorted by address; where two overlap, the earlier one keeps the bytes."""
    kept: list[FilePiece] = []
    end = 0
    for piece in sorted(p for p in found if p.length):
        skip = max(0, end - piece.address)
        if skip < piece.length:
            kept.append(FilePiece(piece.address + skip, piece.length - skip, piece.offset + skip))
            end = piece.address + piece.length
    return kept


def _through(file: Pieces, found: list[FilePiece]) -> Iterator[FilePiece]:
    """Yield the pieces of memory `found`, with offsets in `file` translated to offsets in its descriptor."""
    for piece in found:
        for part in file.within(piece.offset, piece.length) if piece.offset < file.size else ():
            yield FilePiece(piece.address + part.address - piece.offset, part.length, part.offset)
