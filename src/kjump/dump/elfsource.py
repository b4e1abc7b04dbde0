"""Physical memory in an ELF core: a vmcore file, /proc/vmcore, /proc/kcore, or the stream of a kjump image."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import nullcontext

from kjump import _dump
from kjump.dump import bitmaps
from kjump.dump.files import Pieces, RandomAccess, pack
from kjump.dump.source import Source, frames_bitmap
from kjump.errors import FormatError
from kjump.formats import elf
from kjump.memory import FilePiece
from kjump.ranges import Range, RangeSet

_NO_ADDRESS = 1 << 63
"""/proc/kcore gives segments that are no RAM the highest of all addresses."""
_MOST_NOTES = 64 << 20


class ElfSource(Source):
    """An ELF core. Memory that a PT_LOAD has beyond its contents in the file reads as zeros.

    It is not complete when the file ends within the contents of a PT_LOAD.
    """

    def __init__(self, file: RandomAccess, fd: int, kind: str, *, live: bool = False) -> None:
        """Read the headers of `file`; `fd` is closed with this."""
        self._fd = fd
        self._file = file
        self.kind = kind
        self.live = live
        # /proc/kcore has one buffer for each time it is opened, and does not keep two readers from using it at once.
        self._turn = threading.Lock() if live else nullcontext()
        core = read_headers(file)
        self.word = 4 if core.header.machine == elf.EM_386 else 8
        self.notes = b"".join(_notes(file, core))
        self.loads = tuple(p for p in core.loads if p.paddr < _NO_ADDRESS)
        in_file = _disjoint(FilePiece(p.paddr, _there(file, p), p.offset) for p in self.loads)
        self.complete = all(_there(file, p) == p.filesz for p in self.loads)
        self._memory = Lookup(in_file)
        known = RangeSet(Range.of_size(p.address, p.length) for p in in_file)
        self._zeros = RangeSet(Range.of_size(p.paddr, max(p.filesz, p.memsz)) for p in self.loads) - known
        self.present = frames_bitmap(bitmaps.to_frames(known))
        self._native = pack(_through(file, in_file)) if isinstance(file, Pieces) else None

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    @property
    def holes(self) -> RangeSet:
        """Physical addresses that are memory but not in the file: left out when it was written."""
        return self._zeros

    def virtual(self, address: int) -> int:
        """Return the virtual address that the headers give physical `address`; 0 when they give none."""
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
        """Return pages as `Source.read_pages`, natively where a file descriptor is behind this."""
        if self._native is None or not isinstance(self._file, Pieces):
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
    """Return header and program headers, wherever e_phoff has them; FormatError when the file is no core."""
    header = elf.parse_header(file.read(0, min(file.size, elf.HEADER_SIZE)))
    if (where := header.section_zero) is not None:
        header = elf.with_section_zero(header, file.read(where.start, where.size))
    if header.type != elf.ET_CORE:
        raise FormatError("this ELF file is no core")
    if header.machine not in (elf.EM_386, elf.EM_X86_64):
        raise FormatError(f"this core is of machine {header.machine}, not of an x86")
    table = header.table
    return elf.ElfFile(header, elf.parse_program_headers(header, file.read(table.start, table.size)))


def _notes(file: RandomAccess, core: elf.ElfFile) -> Iterator[bytes]:
    """Yield the contents of all PT_NOTEs, each a multiple of four bytes and without the note of zeros at its end."""
    from kjump.formats import notes

    for header in core.notes:
        if header.filesz > _MOST_NOTES:
            raise FormatError(f"notes of {header.filesz} bytes are more than any kernel has")
        yield from (note.encode() for note in notes.iterate(file.read(header.offset, header.filesz)))


def _there(file: RandomAccess, load: elf.ProgramHeader) -> int:
    """Return how many bytes of a PT_LOAD's contents are in the file."""
    return max(0, min(load.filesz, file.size - load.offset))


def _disjoint(found: Iterable[FilePiece]) -> list[FilePiece]:
    """Return pieces sorted by address; of what two have, the earlier keeps it."""
    kept: list[FilePiece] = []
    end = 0
    for piece in sorted(p for p in found if p.length):
        skip = max(0, end - piece.address)
        if skip < piece.length:
            kept.append(FilePiece(piece.address + skip, piece.length - skip, piece.offset + skip))
            end = piece.address + piece.length
    return kept


def _through(file: Pieces, found: list[FilePiece]) -> Iterator[FilePiece]:
    """Yield where the pieces of memory lie in the file behind `file`."""
    for piece in found:
        for part in file.within(piece.offset, piece.length) if piece.offset < file.size else ():
            yield FilePiece(piece.address + part.address - piece.offset, part.length, part.offset)
