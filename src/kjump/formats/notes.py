"""ELF notes: named, typed pieces of bytes, one after another in a PT_NOTE segment.

    0   namesz   length of the name with its NUL     4 bytes, little endian, as the next two
    4   descsz   length of the contents
    8   type     a number whose meaning depends on the name
    12  name, NUL, padding to 4 bytes; contents, padding to 4 bytes

Linux ends the notes of a crashed CPU and of VMCOREINFO by an all-zero note. Where a program header has p_align 8,
contents and the next note begin at multiples of 8 instead. Source: System V ABI, chapter 5.

`iterate` is strict, for notes that a kernel wrote for itself; `salvage` takes what it can of notes that anybody wrote.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from struct import Struct

from kjump.errors import FormatError
from kjump.ranges import align_up

CORE = "CORE"
LINUX = "LINUX"
GNU = "GNU"
QEMU = "QEMU"
VMCOREINFO = "VMCOREINFO"
KJUMP = "KJUMP"

NT_VMCOREINFO = 0
NT_QEMU = 0
NT_PRSTATUS = 1
NT_PRFPREG = 2
NT_PRPSINFO = 3
NT_TASKSTRUCT = 4
NT_AUXV = 6
NT_GNU_BUILD_ID = 3
NT_VMCOREDD = 0x700
NT_KJUMP_DUMP = 16
"""A JSON object about the dump: kind, level, time, source, and whether that was complete."""
NT_FILE = 0x46494C45
NT_SIGINFO = 0x53494749

MOST_OF_ONE = 1 << 20
"""Bytes of contents above which `salvage` does not read a note: VMCOREINFO has a page, registers have a few."""
MOST_OF_ALL = 16 << 20
"""Bytes of contents of all notes that it reads: registers of some ten thousand CPUs."""

_HEADER = Struct("<3I")
_LONGEST_NAME = 64
_FIRST_WINDOW, _WINDOW = 512, 1 << 20
_MOST_NOTES = 1 << 17
_KNOWN = re.compile(rb"(?:CORE|LINUX|VMCOREINFO|QEMU|GNU|XEN|Xen|KJUMP)\0")
_MOST_PROBLEMS = 8


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


@dataclass(frozen=True, slots=True)
class LargeNote:
    """A note whose contents stay where they are: `size` bytes, of which `read(offset, length)` returns some."""

    name: str
    type: int
    size: int
    read: Callable[[int, int], bytes]

    @property
    def encoded_size(self) -> int:
        """Bytes of the note with its header and padding."""
        return _HEADER.size + align_up(len(self.name) + 1, 4) + align_up(self.size, 4)

    def encode(self) -> Iterator[bytes]:
        """Yield the note as bytes, padded to a multiple of 4, a MiB at a time."""
        name = self.name.encode("latin-1") + b"\0"
        yield _HEADER.pack(len(name), self.size, self.type) + _padded(name)
        for at in range(0, self.size, _WINDOW):
            yield self.read(at, min(_WINDOW, self.size - at))
        yield bytes(-self.size % 4)


@dataclass(frozen=True, slots=True)
class Salvage:
    """What could be read of a PT_NOTE segment, and a sentence for each thing in it that could not.

    `large` are notes that were not read, because they would take much memory: device dumps, for example.
    """

    notes: tuple[Note, ...]
    problems: tuple[str, ...]
    large: tuple[LargeNote, ...] = ()


def salvage(read: Callable[[int, int], bytes], size: int, align: int = 4) -> Salvage:
    """Read the notes in a segment of `size` bytes; `read(offset, length)` returns bytes of it.

    What is no note is passed over up to the next one with a name that is known. Notes of more than MOST_OF_ONE bytes,
    and those beyond MOST_OF_ALL, are `large`, for which `read` must stay good. Nothing raises but `read`.
    """
    walk = _Walk(read, size, align)
    walk.all_notes()
    if walk.odd and not any(note.name == VMCOREINFO for note in walk.found):
        walk.look_for_vmcoreinfo()
    return Salvage(tuple(walk.found), tuple(walk.problems), tuple(walk.large))


class _Walk:
    """Goes through a segment of notes that may be damaged."""

    def __init__(self, read: Callable[[int, int], bytes], size: int, align: int) -> None:
        self._read, self._size, self._align = read, size, align
        self._kept = 0
        self.found: list[Note] = []
        self.large: list[LargeNote] = []
        self.problems: list[str] = []
        self.odd = False

    def all_notes(self) -> None:
        at = 0
        while self._size - at >= _HEADER.size:
            header = self._read(at, _HEADER.size)
            if not any(header):
                self.odd |= self._size - at > _HEADER.size
                return
            end = self._note(at)
            if len(self.found) + len(self.large) > _MOST_NOTES:
                self._trouble(f"there are more than {_MOST_NOTES} notes: the others are left out")
                return
            if end is None:
                end = self._next(at)
                what = "what is at" if end is not None else "all from"
                self._trouble(f"the notes are damaged: {what} offset {at:#x} of them on is no ELF note")
                if end is None:
                    return
            at = end
        rest = self._read(at, self._size - at) if at < self._size else b""
        if any(rest):
            self._trouble(f"the notes are damaged: {len(rest)} stray bytes are at their end")

    def _trouble(self, text: str) -> None:
        self.odd = True
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(text)

    def _note(self, at: int) -> int | None:
        """Take the note at `at`; return where the next begins, None when there is none here."""
        namesz, descsz, kind = _HEADER.unpack(self._read(at, _HEADER.size))
        name_at = at + _HEADER.size
        desc_at = align_up(name_at + namesz, self._align)
        if namesz > _LONGEST_NAME or desc_at + descsz > self._size:
            return None
        name = self._read(name_at, namesz).removesuffix(b"\0")
        if not name.isascii() or b"\0" in name.rstrip(b"\0"):
            return None
        text = name.rstrip(b"\0").decode("ascii")
        if descsz > MOST_OF_ONE or (self._kept + descsz > MOST_OF_ALL and text != VMCOREINFO):
            self.large.append(LargeNote(text, kind, descsz, self._reader(desc_at)))
        else:
            self._kept += descsz
            self.found.append(Note(text, kind, self._read(desc_at, descsz)))
        return align_up(desc_at + descsz, self._align)

    def _reader(self, start: int) -> Callable[[int, int], bytes]:
        return lambda at, length: self._read(start + at, length)

    def _next(self, at: int, name: bytes = b"") -> int | None:
        """Return where behind `at` a note with a known name (or with `name`) begins that fits."""
        window, start = _FIRST_WINDOW, at + 4
        while start < self._size:
            length = min(window + _LONGEST_NAME, self._size - start)
            for match in _KNOWN.finditer(self._read(start, length)):
                header = start + match.start() - _HEADER.size
                if header <= at or header % 4 or name not in match[0]:
                    continue
                namesz, descsz, _ = _HEADER.unpack(self._read(header, _HEADER.size))
                if namesz == len(match[0]) and header + _HEADER.size + namesz + descsz <= self._size:
                    return header
            start += window
            window = min(2 * window, _WINDOW)
        return None

    def look_for_vmcoreinfo(self) -> None:
        """Take VMCOREINFO from wherever it is: a note before it may have said that it is longer than it is."""
        at = self._next(-4, VMCOREINFO.encode())
        if at is not None:
            self._note(at)


def find(data: bytes | bytearray | memoryview, name: str, kind: int | None = None) -> Note | None:
    """Return the first note with that name (and type, when given), or None; FormatError as `iterate`."""
    for note in iterate(data):
        if note.name == name and kind in (None, note.type):
            return note
    return None


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
