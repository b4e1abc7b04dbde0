"""The facts of an image: what whoever brings a saved system back must know of it and of its machine.

They travel as JSON in a note of the image (docs/image-format.md). What the first kernel knows before the jump,
`SystemFacts`, travels as JSON in the job of the second kernel, which adds what only it can tell.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, fields, replace
from enum import StrEnum

from kjump.errors import FormatError
from kjump.formats.e820 import E820Entry
from kjump.formats.record import JsonObject, Record
from kjump.formats.superblock import State
from kjump.gates import Gate
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range
from kjump.target.states import Departure, FileSystem

FACTS_VERSION = 1
ADDRESS_END = 1 << 52
"""No physical address of x86_64 lies beyond."""
HOOK_LIMIT = 64 << 10
"""Bytes of a hook: it is part of the image's headers."""
_NAME = 1024
"""Characters of a name: a release, a CPU's model, a path."""
_FLAG = 64
_FLAGS = 4096
_MAP_ENTRIES = 4096
_MOST_FILE_SYSTEMS = 4096
_MOST_TOOLS = 1024
_TYPE_END = (1 << 32) - 1
_LONGEST = 1e12


class Kind(StrEnum):
    """What an image is for, as its facts say (`kind`), and by that the state of a target that holds it whole."""

    HIBERNATION = "hibernation"
    SNAPSHOT = "snapshot"
    DUMP = "dump"

    @property
    def state(self) -> State:
        """The superblock's state when an image of this kind is complete."""
        return {Kind.HIBERNATION: State.COMPLETE, Kind.SNAPSHOT: State.SNAPSHOT, Kind.DUMP: State.DUMP}[self]


@dataclass(frozen=True)
class Tool:
    """A program that a hook calls: where it was when the snapshot was taken, and the SHA-256 of its contents."""

    path: str
    digest: str

    def to_json(self) -> JsonObject:
        """Return it for an image's facts."""
        return {"path": self.path, "digest": self.digest}

    @classmethod
    def from_json(cls, record: Record) -> Tool:
        """Read what `to_json` gave; FormatError."""
        return cls(record.text("path", limit=_NAME), record.hexadecimal("digest", length=32).hex())


@dataclass(frozen=True)
class Hook:
    """A hook's program, its tools, and the seconds that it may take (see `kjump.hibernate.hooks`)."""

    program: bytes
    tools: tuple[Tool, ...] = ()
    timeout: float = 600.0

    def to_json(self) -> JsonObject:
        """Return it for a job and for an image's facts."""
        return {
            "program": base64.b64encode(self.program).decode(),
            "tools": [tool.to_json() for tool in self.tools],
            "timeout": self.timeout,
        }

    @classmethod
    def from_json(cls, record: Record) -> Hook:
        """Read what `to_json` gave; FormatError."""
        try:
            program = base64.b64decode(record.text("program", limit=2 * HOOK_LIMIT), validate=True)
        except (binascii.Error, ValueError):
            raise FormatError(f"{record.what}: program is not in base64") from None
        if not 0 < len(program) <= HOOK_LIMIT:
            raise FormatError(f"{record.what}: program has {len(program)} bytes; at most {HOOK_LIMIT} are allowed")
        tools = tuple(Tool.from_json(item) for item in record.items("tools", limit=_MOST_TOOLS))
        return cls(program, tools, record.number("timeout", low=0, high=_LONGEST))


@dataclass(frozen=True)
class SystemFacts:
    """What the first kernel knows of itself and its machine before the jump.

    `window` and `low` are the physical ranges that were lent to the second kernel, `gate_address` is where its gate
    lies, `elf_headers_size` how many bytes of its window hold the ELF headers for /proc/vmcore. `loops_per_jiffy` is 0
    when this kernel does not say.
    """

    release: str
    cpu_model: str
    cpu_flags: frozenset[str]
    la57: bool
    memory_map: tuple[E820Entry, ...]
    window: Range
    low: Range
    gate_address: int
    elf_headers_size: int
    loops_per_jiffy: int = 0

    def to_json(self) -> JsonObject:
        """Return it for a job and for an image's facts."""
        return {
            "release": self.release,
            "cpu_model": self.cpu_model,
            "cpu_flags": [*sorted(self.cpu_flags)],
            "la57": self.la57,
            "memory_map": [[e.range.start, e.range.end, e.type] for e in self.memory_map],
            "window": [self.window.start, self.window.end],
            "low": [self.low.start, self.low.end],
            "gate_address": self.gate_address,
            "elf_headers_size": self.elf_headers_size,
            "loops_per_jiffy": self.loops_per_jiffy,
        }

    @classmethod
    def from_json(cls, record: Record) -> SystemFacts:
        """Read what `to_json` gave; FormatError."""
        window = record.bounded("window", high=ADDRESS_END, unit=PAGE_SIZE)
        return cls(
            release=record.text("release", limit=_NAME),
            cpu_model=record.text("cpu_model", limit=_NAME),
            cpu_flags=frozenset(record.texts("cpu_flags", limit=_FLAGS, length=_FLAG)),
            la57=record.flag("la57"),
            memory_map=tuple(
                _entry(record, row) for row in record.rows("memory_map", length=3, high=ADDRESS_END, limit=_MAP_ENTRIES)
            ),
            window=window,
            low=record.bounded("low", high=ADDRESS_END, unit=PAGE_SIZE),
            gate_address=record.integer("gate_address", high=ADDRESS_END - 1),
            elf_headers_size=record.integer("elf_headers_size", high=window.size),
            loops_per_jiffy=record.optional("loops_per_jiffy", record.integer, 0),
        )


def _entry(record: Record, row: tuple[int, ...]) -> E820Entry:
    start, end, kind = row
    if start > end or kind > _TYPE_END:
        raise FormatError(f"{record.what}: memory_map has an entry [{start}, {end}, {kind}] that cannot be")
    return E820Entry(Range(start, end), kind)


@dataclass(frozen=True)
class ImageFacts:
    """All facts of an image.

    `gate` has the gate's fields as the way into the second kernel left them. `kept_head` is the physical address of the
    list by which the saved kernel swaps on the way back, as it keeps it (0: not known); `saved_at` the wall clock, in
    seconds since 1970. `departure` is what the first kernel said of its disks at the jump, None when it could not.
    `dump_level` is what `kjump dump --level` takes, for a dump.
    """

    kind: Kind
    system: SystemFacts
    gate: Gate
    kept_head: int
    saved_at: float
    file_systems: tuple[FileSystem, ...]
    departure: Departure | None = None
    hook: Hook | None = None
    dump_level: int | None = None

    def to_json(self) -> JsonObject:
        """Return them as they stand in the image's note."""
        found: JsonObject = {
            "facts_version": FACTS_VERSION,
            "kind": self.kind.value,
            "system": self.system.to_json(),
            "gate": gate_to_json(self.gate),
            "kept_head": self.kept_head,
            "saved_at": self.saved_at,
            "file_systems": [item.to_json() for item in self.file_systems],
        }
        if self.departure is not None:
            found["departure"] = self.departure.to_json()
        if self.hook is not None:
            found["hook"] = self.hook.to_json()
        if self.dump_level is not None:
            found["dump_level"] = self.dump_level
        return found

    @classmethod
    def from_json(cls, record: Record) -> ImageFacts:
        """Read what `to_json` gave; FormatError, of another version before anything else is looked at."""
        version = record.integer("facts_version")
        if version != FACTS_VERSION:
            raise FormatError(f"{record.what} are of version {version}, this kjump knows version {FACTS_VERSION}")
        return cls(
            kind=record.choice("kind", Kind),
            system=record.map("system", SystemFacts.from_json),
            gate=record.map("gate", gate_from_json),
            kept_head=record.integer("kept_head", high=ADDRESS_END - 1),
            saved_at=record.number("saved_at", low=0, high=_LONGEST),
            file_systems=tuple(
                FileSystem.from_json(item) for item in record.items("file_systems", limit=_MOST_FILE_SYSTEMS)
            ),
            departure=record.maybe("departure", Departure.from_json),
            hook=record.maybe("hook", Hook.from_json),
            dump_level=record.integer("dump_level", high=31) if "dump_level" in record else None,
        )


def gate_to_json(gate: Gate) -> JsonObject:
    """Return a gate's fields as JSON, its cookie in hexadecimal digits."""
    found: JsonObject = {f.name: getattr(gate, f.name) for f in fields(Gate) if f.name != "cookie"}
    return found | {"cookie": gate.cookie.hex()}


def gate_from_json(record: Record) -> Gate:
    """Read what `gate_to_json` gave; FormatError."""
    values = {f.name: record.integer(f.name) for f in fields(Gate) if f.name != "cookie"}
    if values["mailbox"] >= ADDRESS_END or values["mailbox"] % PAGE_SIZE:
        raise FormatError(f"{record.what}: mailbox is {values['mailbox']:#x}, not the physical address of a page")
    return replace(Gate(), **values, cookie=record.hexadecimal("cookie", length=16))
