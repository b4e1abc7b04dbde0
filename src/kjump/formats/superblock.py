"""The superblock in front of an image on a target: 4096 bytes that say what is there, and in which state.

    0     magic               8 bytes, "KJUMPIMG"
    8     version             4 bytes, 2
    12    state               4 bytes, see `State`
    16    generation          8 bytes, counts up each time the target is armed
    24    cookie              16 bytes, random, written when the target is armed
    40    image length        8 bytes: of the image, which begins behind the superblock and the extent map
    48    stream length       8 bytes: of the image, decompressed
    56    header length       8 bytes: of the ELF headers and notes at the start of the stream
    64    seek table offset   8 bytes, from the start of the image
    72    seek table length   8 bytes
    80    digest              32 bytes, SHA-256 over the seek table, the headers, then the extent map
    112   capacity            8 bytes: of the whole target
    120   map length          8 bytes: of the extent map behind the superblock (see `extentmap`); 0 on a raw target
    128   details length      4 bytes
    132   details             up to 3960 bytes, a JSON object in UTF-8 (see `Details`), then zeros
    4092  checksum            4 bytes, CRC-32 (as zlib's) of all before

All numbers are little endian, all lengths in bytes. Magic and checksum stay where they are in every version.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from kjump.errors import FormatError
from kjump.formats.record import JsonObject, Record

SUPERBLOCK_SIZE = 4096
MAGIC = b"KJUMPIMG"
VERSION = 2

_FIELDS = struct.Struct("<8sIIQ16sQQQQQ32sQQI")
_CHECKSUM = struct.Struct("<I")
_BODY_SIZE = SUPERBLOCK_SIZE - _CHECKSUM.size

MAX_DETAILS = _BODY_SIZE - _FIELDS.size
"""Bytes that `details` may take as JSON."""
_LONG_REASON, _SHORT_REASON = 1000, 200
"""Characters of a reason that are kept; of the first so many only if they fit."""
_MOST_LEVEL = 1 << 20
"""Far more than any zstd level; negative ones are fast."""


class State(IntEnum):
    """What has become of the target so far."""

    EMPTY = 0
    ARMED = 1
    """A made it ready; nothing is written yet."""
    WRITING = 2
    COMPLETE = 3
    """There is an image that can be resumed."""
    ATTEMPTED = 4
    """A resume has begun; if this is found at boot, it failed."""
    CONSUMED = 5
    """The image was resumed, and must never be again."""
    INVALID = 6
    """The image was given up, or writing it failed; the details may say why."""
    SNAPSHOT = 7
    """There is a snapshot: complete, for roll-backs, as many as wanted; a boot neither resumes nor invalidates it."""
    DUMP = 8
    """There is a debugging dump: complete, but pages were left out of it that a system cannot do without."""


HOLDS_AN_IMAGE = frozenset({State.COMPLETE, State.ATTEMPTED, State.SNAPSHOT, State.DUMP})
"""The states whose image is whole and may be read."""


@dataclass(frozen=True)
class MemoryUse:
    """How close to its limit a kernel's memory was, in bytes: the peak of one process, and what was still available."""

    peak_bytes: int
    available_bytes: int

    def to_json(self) -> JsonObject:
        """Return it for a report."""
        return {"peak_bytes": self.peak_bytes, "available_bytes": self.available_bytes}

    @classmethod
    def from_json(cls, record: Record) -> MemoryUse:
        """Read what `to_json` gave; FormatError."""
        return cls(record.integer("peak_bytes"), record.integer("available_bytes"))


@dataclass(frozen=True)
class Saved:
    """What a save came to: bytes kept of the saved system, bytes of its image, seconds, memory, the zstd level."""

    kept_bytes: int
    image_bytes: int
    select_seconds: float
    write_seconds: float
    memory: MemoryUse
    level: int

    def to_json(self) -> JsonObject:
        """Return it for the mailbox and the superblock; times are rounded to milliseconds."""
        return {
            "kept_bytes": self.kept_bytes,
            "image_bytes": self.image_bytes,
            "select_seconds": round(self.select_seconds, 3),
            "write_seconds": round(self.write_seconds, 3),
            "memory": self.memory.to_json(),
            "level": self.level,
        }

    @classmethod
    def from_json(cls, record: Record) -> Saved:
        """Read what `to_json` gave; FormatError."""
        return cls(
            record.integer("kept_bytes"),
            record.integer("image_bytes"),
            record.number("select_seconds", low=0),
            record.number("write_seconds", low=0),
            record.map("memory", MemoryUse.from_json),
            record.integer("level", low=-_MOST_LEVEL, high=_MOST_LEVEL),
        )


@dataclass(frozen=True)
class Details:
    """What a superblock says in words: the `reason` of a failure, how often a snapshot was `rolled_back` to.

    `saved` is what the save came to. `rollback_boot` is the identity of the boot that began a roll-back to the snapshot
    and has not come to its end. `others` are fields that a newer version wrote: they are written again as they are.
    """

    reason: str = ""
    rolled_back: int = 0
    saved: Saved | None = None
    rollback_boot: str = ""
    others: JsonObject = field(default_factory=dict)

    def to_json(self) -> JsonObject:
        """Return it as JSON; what says nothing is left out."""
        found: JsonObject = {
            "reason": self.reason,
            "rolled_back": self.rolled_back,
            "saved": self.saved.to_json() if self.saved else None,
            "rollback_boot": self.rollback_boot,
        }
        return self.others | {name: value for name, value in found.items() if value}

    @classmethod
    def from_json(cls, record: Record) -> Details:
        """Read what `to_json` gave; FormatError."""
        return cls(
            record.optional("reason", record.text, ""),
            record.optional("rolled_back", record.integer, 0),
            record.maybe("saved", Saved.from_json),
            record.optional("rollback_boot", record.text, ""),
            record.others("reason", "rolled_back", "saved", "rollback_boot"),
        )

    def pack(self) -> bytes:
        """Return the JSON as it stands in a superblock, of any length."""
        return json.dumps(self.to_json(), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")

    def because(self, reason: str) -> Details:
        """Return these details with another `reason`, which is cut, like the rest, to what fits in a superblock."""
        reason = reason.encode("utf-8", "replace").decode()
        for kept, length in ((self, _LONG_REASON), (self, _SHORT_REASON), (replace(self, others={}), _SHORT_REASON)):
            found = replace(kept, reason=reason[:length])
            if len(found.pack()) <= MAX_DETAILS:
                return found
        return Details(reason=reason[:_SHORT_REASON])


@dataclass(frozen=True, kw_only=True)
class Superblock:
    """A superblock; see the drawing for its fields."""

    state: State = State.EMPTY
    generation: int = 0
    cookie: bytes = bytes(16)
    image_length: int = 0
    stream_length: int = 0
    header_length: int = 0
    seek_table_offset: int = 0
    seek_table_length: int = 0
    digest: bytes = bytes(32)
    capacity: int = 0
    map_length: int = 0
    details: Details = Details()

    @property
    def image_offset(self) -> int:
        """The byte of the target where the image begins."""
        return SUPERBLOCK_SIZE + self.map_length

    def evolve(self, **changes: Any) -> Superblock:
        """Return a copy with the fields named in `changes` exchanged."""
        return replace(self, **changes)

    def pack(self) -> bytes:
        """Return the 4096 bytes of the superblock; FormatError when a field does not fit."""
        details = self.details.pack()
        if len(details) > MAX_DETAILS:
            raise FormatError(f"the superblock's details take {len(details)} bytes, at most {MAX_DETAILS} fit")
        if len(self.cookie) != 16 or len(self.digest) != 32:
            raise FormatError("the superblock's cookie must have 16 bytes and its digest 32")
        try:
            fields = _FIELDS.pack(
                MAGIC,
                VERSION,
                self.state,
                self.generation,
                self.cookie,
                self.image_length,
                self.stream_length,
                self.header_length,
                self.seek_table_offset,
                self.seek_table_length,
                self.digest,
                self.capacity,
                self.map_length,
                len(details),
            )
        except struct.error as error:
            raise FormatError(f"a field of the superblock is out of range: {error}") from None
        body = (fields + details).ljust(_BODY_SIZE, b"\0")
        return body + _CHECKSUM.pack(zlib.crc32(body))

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> Superblock:
        """Read a superblock from the first 4096 bytes of a target; FormatError when there is no sound one."""
        if bytes(data[: len(MAGIC)]) != MAGIC:
            raise FormatError("no kjump image here")
        if len(data) != SUPERBLOCK_SIZE:
            raise FormatError(f"a superblock has {SUPERBLOCK_SIZE} bytes, not {len(data)}")
        if _CHECKSUM.unpack_from(data, _BODY_SIZE)[0] != zlib.crc32(data[:_BODY_SIZE]):
            raise FormatError("the superblock of the kjump image is damaged (bad checksum)")
        _, version, state, generation, cookie, *lengths, digest, capacity, map_length, details_length = (
            _FIELDS.unpack_from(data)
        )
        if version != VERSION:
            raise FormatError(f"the superblock is of version {version}, this kjump knows version {VERSION}")
        image_length, stream_length, header_length, seek_table_offset, seek_table_length = lengths
        superblock = cls(
            state=_state(state),
            generation=generation,
            cookie=cookie,
            image_length=image_length,
            stream_length=stream_length,
            header_length=header_length,
            seek_table_offset=seek_table_offset,
            seek_table_length=seek_table_length,
            digest=digest,
            capacity=capacity,
            map_length=map_length,
            details=_details(data, details_length),
        )
        superblock._check_lengths()
        return superblock

    def _check_lengths(self) -> None:
        """Refuse lengths of an image in use that cannot be, so that nobody reads what they say."""
        if self.state in HOLDS_AN_IMAGE and not (
            self.header_length <= self.stream_length
            and self.seek_table_offset + self.seek_table_length <= self.image_length
            and self.image_length <= self.capacity - self.image_offset
        ):
            raise FormatError("the lengths in the superblock contradict each other")


def is_of(data: bytes, cookie: bytes) -> bool:
    """Tell whether `data` begins as a superblock with that `cookie` does, damaged or not.

    Both that is looked at lies in the first 512 bytes, which a disk writes all or none of.
    """
    return data[: len(MAGIC)] == MAGIC and data[24 : 24 + len(cookie)] == cookie


def _state(number: int) -> State:
    try:
        return State(number)
    except ValueError:
        raise FormatError(f"the superblock is in a state that is not known ({number})") from None


def _details(data: bytes | bytearray | memoryview, length: int) -> Details:
    if length > MAX_DETAILS:
        raise FormatError(f"the superblock's details cannot have {length} bytes")
    text = bytes(data[_FIELDS.size : _FIELDS.size + length])
    return Details.from_json(Record.parse(text, "the superblock's details"))
