"""ELF headers of cores and executables, 32 and 64 bits, little endian: read, and written for cores.

A core as `core_headers` lays it out:

    0           ELF header (64 bytes)
    64          program headers (56 bytes each): PT_NOTE, then one PT_LOAD for each piece of memory
    ...         notes; with more than 65534 program headers, then section header 0, which holds their number
    page bound  data of the first PT_LOAD; each PT_LOAD begins at a page bound

Readers follow e_phoff wherever it points and ignore e_ehsize (QEMU writes 8). Source: System V ABI,
chapters 4 and 5; PN_XNUM from elf(5).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from struct import Struct

from kjump.errors import FormatError
from kjump.ranges import Range, align_up

MAGIC = b"\x7fELF"
CLASS_32 = 1
CLASS_64 = 2
ET_EXEC = 2
ET_DYN = 3
ET_CORE = 4
EM_386 = 3
EM_X86_64 = 62
PT_LOAD = 1
PT_DYNAMIC = 2
PT_NOTE = 4
PT_TLS = 7
PF_X = 1
PF_W = 2
PF_R = 4
PN_XNUM = 0xFFFF

HEADER_SIZE = 64
"""Bytes from the beginning of a file that `parse_header` needs, whatever the class."""

_LITTLE_ENDIAN = 1
_IDENT_SIZE = 16
_FILE_END = 1 << 63

# type, machine, version, entry, phoff, shoff, flags, ehsize, phentsize, phnum, shentsize, shnum, shstrndx
_HEADER = {CLASS_32: Struct("<HHIIIIIHHHHHH"), CLASS_64: Struct("<HHIQQQIHHHHHH")}
# 32: type, offset, vaddr, paddr, filesz, memsz, flags, align; 64: the flags come second
_PROGRAM = {CLASS_32: Struct("<8I"), CLASS_64: Struct("<IIQQQQQQ")}
# name, type, flags, addr, offset, size, link, info, addralign, entsize
_SECTION = {CLASS_32: Struct("<10I"), CLASS_64: Struct("<IIQQQQIIQQ")}


@dataclass(frozen=True, slots=True)
class ElfHeader:
    """What the ELF header says; offsets in bytes from the beginning of the file, names as in elf(5).

    `phnum` is PN_XNUM while the true number is still to be fetched: see `section_zero`.
    """

    elf_class: int
    type: int
    machine: int
    entry: int
    phoff: int
    shoff: int
    phnum: int
    counted: bool = True

    @property
    def bits(self) -> int:
        """32 or 64, by the class of the file."""
        return 32 if self.elf_class == CLASS_32 else 64

    @property
    def section_zero(self) -> Range | None:
        """Where section header 0 lies, which holds the number of program headers; None when not needed."""
        if self.counted:
            return None
        return Range.of_size(self.shoff, _SECTION[self.elf_class].size)

    @property
    def table(self) -> Range:
        """Where in the file the program headers lie; FormatError while `section_zero` is not yet read."""
        if not self.counted:
            raise FormatError("ELF: the number of program headers is in section header 0, which was not read")
        return Range.of_size(self.phoff, self.phnum * _PROGRAM[self.elf_class].size)


@dataclass(frozen=True, slots=True)
class ProgramHeader:
    """One program header; bytes and file offsets, names as in elf(5)."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int

    @property
    def physical(self) -> Range:
        """The physical addresses of what is in the file (`filesz` from `paddr`)."""
        return Range.of_size(self.paddr, self.filesz)

    @property
    def data(self) -> Range:
        """Where in the file the contents lie."""
        return Range.of_size(self.offset, self.filesz)


@dataclass(frozen=True, slots=True)
class ElfFile:
    """An ELF file's header and program headers."""

    header: ElfHeader
    program_headers: tuple[ProgramHeader, ...]

    @property
    def loads(self) -> tuple[ProgramHeader, ...]:
        """The PT_LOAD headers, in file order."""
        return tuple(p for p in self.program_headers if p.type == PT_LOAD)

    @property
    def notes(self) -> tuple[ProgramHeader, ...]:
        """The PT_NOTE headers, in file order."""
        return tuple(p for p in self.program_headers if p.type == PT_NOTE)


def parse(data: bytes | bytearray | memoryview, *, most: int | None = None) -> ElfFile:
    """Read header and program headers from the beginning of a file; FormatError when they are not in it.

    With more than `most` program headers it is refused before any of them is read.
    """
    header = parse_header(data)
    where = header.section_zero
    if where is not None:
        header = with_section_zero(header, data[where.start : where.end])
    if most is not None and header.phnum > most:
        raise FormatError(f"ELF: {header.phnum} program headers; at most {most} are allowed")
    table = header.table
    return ElfFile(header, parse_program_headers(header, data[table.start : table.end]))


def parse_header(leading: bytes | bytearray | memoryview) -> ElfHeader:
    """Read the ELF header from the first HEADER_SIZE bytes of a file; FormatError when we cannot read it."""
    elf_class = _check_ident(bytes(leading[:_IDENT_SIZE]))
    layout = _HEADER[elf_class]
    if len(leading) < _IDENT_SIZE + layout.size:
        raise FormatError(f"ELF: the file is cut off within its header, after {len(leading)} bytes")
    kind, machine, _, entry, phoff, shoff, _, _, phentsize, phnum, *_ = layout.unpack_from(leading, _IDENT_SIZE)
    if phnum and phentsize != _PROGRAM[elf_class].size:
        raise FormatError(f"ELF: program headers of {phentsize} bytes, expected {_PROGRAM[elf_class].size}")
    counted = phnum != PN_XNUM or shoff == 0
    return ElfHeader(elf_class, kind, machine, entry, phoff, shoff, phnum, counted)


def with_section_zero(header: ElfHeader, section: bytes | bytearray | memoryview) -> ElfHeader:
    """Return `header` with the count of program headers from section header 0; FormatError if cut off."""
    layout = _SECTION[header.elf_class]
    if len(section) < layout.size:
        raise FormatError(f"ELF: the file is cut off in section header 0 at offset {header.shoff:#x}")
    info: int = layout.unpack_from(section)[7]
    return replace(header, phnum=info, counted=True)


def parse_program_headers(header: ElfHeader, table: bytes | bytearray | memoryview) -> tuple[ProgramHeader, ...]:
    """Read the program headers from the bytes at `header.table`; FormatError when some are missing."""
    layout = _PROGRAM[header.elf_class]
    size = header.table.size
    if len(table) < size:
        raise FormatError(
            f"ELF: cut off in program headers: {len(table)} of {size} bytes at {header.phoff:#x} are there"
        )
    make = _program_header_32 if header.elf_class == CLASS_32 else ProgramHeader
    found = tuple(make(*fields) for fields in layout.iter_unpack(table[:size]))
    for index, item in enumerate(found):
        if item.offset + item.filesz >= _FILE_END:
            raise FormatError(f"ELF: program header {index} points beyond the end of any file")
    return found


@dataclass(frozen=True, slots=True)
class CoreLoad:
    """A piece of memory to stand in a core: physical and virtual address, size, in bytes.

    A `memory_size` says that this is memory which is not in the file; then `size` must be 0. Such a load points behind
    the data of all others, for makedumpfile maps by memory size and would take others' data for it.
    """

    paddr: int
    vaddr: int
    size: int
    memory_size: int = 0


def core_headers(
    loads: Sequence[CoreLoad], notes: bytes, *, machine: int = EM_X86_64, align: int = 4096
) -> tuple[bytes, list[int]]:
    """Return the head of an ELF64 core, padded to `align`, and the file offset of each load's data.

    `notes` are encoded notes. The data follow in the order of `loads`, each at a multiple of `align`.
    """
    before, after, offsets = core_headers_around(loads, notes, 0, machine=machine, align=align)
    return before + after, offsets


def core_headers_around(
    loads: Sequence[CoreLoad], notes: bytes, more: int, *, machine: int = EM_X86_64, align: int = 4096
) -> tuple[bytes, bytes, list[int]]:
    """Return the head of a core as `core_headers`, in two pieces: between them belong `more` bytes of notes."""
    count = len(loads) + 1
    notes_at = HEADER_SIZE + count * _PROGRAM[CLASS_64].size
    notes_end = end = notes_at + len(notes) + more
    section_at = 0
    if count >= PN_XNUM:
        section_at = align_up(end, 8)
        end = section_at + _SECTION[CLASS_64].size
    size = align_up(end, align)
    offsets = _data_offsets(loads, size, align)
    head = bytearray(_core_header(machine, count, section_at))
    head += _PROGRAM[CLASS_64].pack(PT_NOTE, 0, notes_at, 0, 0, len(notes) + more, len(notes) + more, 0)
    head += b"".join(_core_load(load, at) for load, at in zip(loads, offsets, strict=True))
    head += notes
    after = b""
    if section_at:
        after = bytes(section_at - notes_end) + _SECTION[CLASS_64].pack(0, 0, 0, 0, 0, 1, 0, count, 0, 0)
    return bytes(head), after.ljust(size - notes_end, b"\0"), offsets


def kdump_headers(ram: Iterable[Range], note: bytes, address: int, *, machine: int = EM_X86_64) -> bytes:
    """Return ELF64 core headers to lie at physical `address`, in the form that `elfcorehdr=` points to.

    They describe memory in place: file offsets are physical addresses. `note` (encoded) follows the headers.
    Source: Documentation/admin-guide/kdump/kdump.rst and fs/proc/vmcore.c.
    """
    loads = [CoreLoad(paddr=r.start, vaddr=0, size=r.size) for r in ram]
    count = len(loads) + 1
    note_at = address + HEADER_SIZE + count * _PROGRAM[CLASS_64].size
    head = _core_header(machine, count, 0)
    head += _PROGRAM[CLASS_64].pack(PT_NOTE, 0, note_at, 0, note_at, len(note), len(note), 0)
    return head + b"".join(_core_load(load, load.paddr) for load in loads) + note


def kdump_headers_size(loads: int, note: bytes) -> int:
    """Return the bytes that `kdump_headers` takes for that many ranges of RAM and `note`."""
    return HEADER_SIZE + (loads + 1) * _PROGRAM[CLASS_64].size + len(note)


def _check_ident(ident: bytes) -> int:
    if ident[:4] != MAGIC:
        raise FormatError("not an ELF file: it does not begin with the ELF magic number")
    if len(ident) < _IDENT_SIZE:
        raise FormatError(f"ELF: the file is cut off within its header, after {len(ident)} bytes")
    if ident[4] not in _HEADER:
        raise FormatError(f"ELF: unknown class {ident[4]}, neither 32 nor 64 bits")
    if ident[5] != _LITTLE_ENDIAN:
        raise FormatError("ELF: the file is not little endian, so not of an x86 machine")
    return ident[4]


def _program_header_32(
    kind: int, offset: int, vaddr: int, paddr: int, filesz: int, memsz: int, flags: int, align: int
) -> ProgramHeader:
    return ProgramHeader(kind, flags, offset, vaddr, paddr, filesz, memsz, align)


def _data_offsets(loads: Sequence[CoreLoad], first: int, align: int) -> list[int]:
    offsets = []
    at = first
    for load in loads:
        offsets.append(at)
        at = align_up(at + load.size, align)
    return [at if load.memory_size else offset for load, offset in zip(loads, offsets, strict=True)]


def _core_header(machine: int, count: int, section_at: int) -> bytes:
    ident = MAGIC + bytes([CLASS_64, _LITTLE_ENDIAN, 1]) + bytes(9)
    program_size, section_size = _PROGRAM[CLASS_64].size, _SECTION[CLASS_64].size
    sections = 1 if section_at else 0
    return ident + _HEADER[CLASS_64].pack(
        *(ET_CORE, machine, 1, 0, HEADER_SIZE, section_at, 0, HEADER_SIZE),
        *(program_size, min(count, PN_XNUM), section_size * sections, sections, 0),
    )


def _core_load(load: CoreLoad, offset: int) -> bytes:
    return _PROGRAM[CLASS_64].pack(
        *(PT_LOAD, PF_R | PF_W | PF_X, offset, load.vaddr, load.paddr, load.size),
        *(load.memory_size or load.size, 0),
    )
