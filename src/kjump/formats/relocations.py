"""What an executable wants of a dynamic linker: its relocations, as far as they can be done without one.

PT_DYNAMIC is a table of pairs (tag, value) that ends with tag 0. Relocations stand in up to three tables: DT_RELA
(offset, info, addend; x86_64) or DT_REL (offset, info; i386), DT_RELR (packed), and DT_JMPREL (functions elsewhere).
Source: System V ABI, chapter 5, with its supplements for i386 and x86_64.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from struct import error as StructError

from kjump.errors import FormatError
from kjump.formats.elf import CLASS_64, PT_DYNAMIC, PT_TLS, ElfFile

Data = bytes | bytearray | memoryview

_DT_NULL = 0
_DT_NEEDED = 1
_DT_PLTRELSZ = 2
_DT_STRTAB = 5
_DT_SYMTAB = 6
_DT_RELA = 7
_DT_RELASZ = 8
_DT_STRSZ = 10
_DT_REL = 17
_DT_RELSZ = 18
_DT_JMPREL = 23
_DT_INIT_ARRAYSZ = 27
_DT_RELRSZ = 35
_R_RELATIVE = 8

_NEEDS_A_LINKER = {
    _DT_NEEDED: "it needs shared libraries, which nobody loads: link it with -static-pie and -nostdlib",
    _DT_RELRSZ: "its relocations are packed (DT_RELR): link it with -Wl,-z,nopack-relative-relocs",
    _DT_INIT_ARRAYSZ: "it has constructors, which nobody calls: do without them",
}
"""What may not be in a program, by the tag (of a size, where there is one) that tells."""


def relative_relocations(data: Data, file: ElfFile) -> list[tuple[int, int | None]]:
    """Return what a position-independent executable wants its base added to: (address of a word, addend).

    The word becomes base + addend; an addend of None (32 bits) is what the word holds already. FormatError for
    whatever else it needs before it can run, or a table that is cut off.
    """
    if any(header.type == PT_TLS and header.memsz for header in file.program_headers):
        raise FormatError("it has variables of a thread (PT_TLS), and there are no threads: make them ordinary ones")
    wide = file.header.elf_class == CLASS_64
    tags = _dynamic(data, file)
    for tag, why in _NEEDS_A_LINKER.items():
        if tags.get(tag):
            raise FormatError(why)
    if tags.get(_DT_RELSZ if wide else _DT_RELASZ):
        raise FormatError("its relocations are of a kind that its machine does not have")
    table, size = (_DT_RELA, _DT_RELASZ) if wide else (_DT_REL, _DT_RELSZ)
    layout = Struct("<QQQ" if wide else "<II")
    records = [
        *_whole(layout, data, file, tags.get(table, 0), tags.get(size, 0)),
        *_whole(layout, data, file, tags.get(_DT_JMPREL, 0), tags.get(_DT_PLTRELSZ, 0)),
    ]
    for address, info, *_ in records:
        if info != _R_RELATIVE:
            raise FormatError(f"{_wanted(data, file, tags, info)} (relocation {info:#x} at {address:#x})")
    return [(address, addend[0] if addend else None) for address, _, *addend in records]


def _dynamic(data: Data, file: ElfFile) -> dict[int, int]:
    """Return the entries of PT_DYNAMIC, the first of each tag; none when there is no such table."""
    header = next((p for p in file.program_headers if p.type == PT_DYNAMIC), None)
    tags: dict[int, int] = {}
    if header is not None:
        layout = Struct("<QQ" if file.header.elf_class == CLASS_64 else "<II")
        for tag, value in _records(layout, data, header.offset, header.filesz):
            if tag == _DT_NULL:
                break
            tags.setdefault(tag, value)
    return tags


def _wanted(data: Data, file: ElfFile, tags: dict[int, int], info: int) -> str:
    """Say what a relocation with `info` is for: the name of its symbol, if the file tells."""
    wide = file.header.elf_class == CLASS_64
    number = info >> 32 if wide else info >> 8
    entry = Struct("<IBBHQQ" if wide else "<IIIBBH")  # the name comes first in both
    try:
        start = _file_offset(file, tags[_DT_SYMTAB]) + number * entry.size
        name, *_ = entry.unpack_from(data, start)
        strings = _file_offset(file, tags[_DT_STRTAB])
        text = bytes(data[strings + name : strings + tags[_DT_STRSZ]]).partition(b"\0")[0].decode("ascii", "replace")
    except (KeyError, FormatError, StructError):  # the file does not tell
        text = ""
    if not number or not text:
        return "it needs a dynamic linker: link it with -static-pie and -nostdlib"
    return f"it uses {text}, which it does not have: link what defines that into it"


def _whole(layout: Struct, data: Data, file: ElfFile, address: int, size: int) -> Iterable[tuple[int, ...]]:
    return _records(layout, data, _file_offset(file, address), size) if size else ()


def _records(layout: Struct, data: Data, offset: int, size: int) -> Iterable[tuple[int, ...]]:
    """Return the records of a table in a file; FormatError when it is cut off or not of whole records."""
    if offset + size > len(data) or size % layout.size:
        raise FormatError(f"a table of {size} bytes at {offset:#x} is cut off")
    return layout.iter_unpack(data[offset : offset + size])


def _file_offset(file: ElfFile, address: int) -> int:
    for load in file.loads:
        if load.vaddr <= address < load.vaddr + load.filesz:
            return load.offset + address - load.vaddr
    raise FormatError(f"address {address:#x} is in no segment")
