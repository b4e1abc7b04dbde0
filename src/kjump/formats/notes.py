"""ELF notes: named, typed pieces of bytes, one after another in a PT_NOTE segment.

    0   namesz   length of the name with its NUL     4 bytes, little endian, as the next two
    4   descsz   length of the contents
    8   type     a number whose meaning depends on the name
    12  name, NUL, padding to 4 bytes; contents, padding to 4 bytes

Linux ends the notes of a crashed CPU and of VMCOREINFO by an all-zero note. Source: System V ABI, chapter 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import Struct

from kjump.errors import FormatError
from kjump.ranges import align_up

CORE = "CORE"
LINUX = "LINUX"
GNU = "GNU"
QEMU = "QEMU"
VMCOREINFO = "VMCOREINFO"

NT_VMCOREINFO = 0
NT_QEMU = 0
NT_PRSTATUS = 1
NT_PRFPREG = 2
NT_PRPSINFO = 3
NT_TASKSTRUCT = 4
NT_AUXV = 6
NT_GNU_BUILD_ID = 3

_HEADER = Struct("<3I")


@dataclass(frozen=True, slots=True)
class Note:
    """A note: its `name` without the NUL (a character for a byte), its `type` and its contents."""

    name: str
    type: int
    desc: bytes

    def encode(self) -> bytes:
        """Return the note as bytes, padded to a multiple of 4; FormatError when the name is no 8-bit text."""
        try:
            name = self.name.encode("latin-1") + b"\0"
        except UnicodeEncodeError:
            raise FormatError(f"a note cannot be named {self.name!r}") from None
        return _HEADER.pack(len(name), len(self.desc), self.type) + _padded(name) + _padded(self.desc)


def encode(notes: Iterable[Note]) -> bytes:
    """Return `notes` one after another, as they stand in a PT_NOTE segment."""
    return b"".join(note.encode() for note in notes)


def iterate(data: bytes | bytearray | memoryview) -> Iterator[Note]:
    """Go through the notes in `data` until its end or an all-zero note; FormatError when one is cut off."""
    at = 0
    while len(data) - at >= _HEADER.size:
        namesz, descsz, kind = _HEADER.unpack_from(data, at)
        if namesz == descsz == kind == 0:
            return
        name_at = at + _HEADER.size
        desc_at = name_at + align_up(namesz, 4)
        if desc_at + descsz > len(data):
            raise FormatError(f"the ELF note at offset {at:#x} is cut off: {descsz} bytes of contents announced")
        name = bytes(data[name_at : name_at + namesz])
        yield Note(name.removesuffix(b"\0").decode("latin-1"), kind, bytes(data[desc_at : desc_at + descsz]))
        at = desc_at + align_up(descsz, 4)
    if any(data[at:]):
        raise FormatError(f"{len(data) - at} stray bytes at offset {at:#x} where an ELF note should begin")


def find(data: bytes | bytearray | memoryview, name: str, kind: int | None = None) -> Note | None:
    """Return the first note with that name (and type, when given), or None; FormatError as `iterate`."""
    for note in iterate(data):
        if note.name == name and kind in (None, note.type):
            return note
    return None


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
