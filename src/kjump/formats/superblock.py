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
    132   details             up to 3960 bytes, a JSON object in UTF-8, then zeros
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

SUPERBLOCK_SIZE = 4096
MAGIC = b"KJUMPIMG"
VERSION = 2

_FIELDS = struct.Struct("<8sIIQ16sQQQQQ32sQQI")
_CHECKSUM = struct.Struct("<I")
_BODY_SIZE = SUPERBLOCK_SIZE - _CHECKSUM.size

MAX_DETAILS = _BODY_SIZE - _FIELDS.size
"""Bytes that `details` may take as JSON."""


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


@dataclass(frozen=True, kw_only=True)
class Superblock:
    """A superblock; see the drawing for its fields. `details` is anything JSON can say."""

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
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def image_offset(self) -> int:
        """The byte of the target where the image begins."""
        return SUPERBLOCK_SIZE + self.map_length

    def evolve(self, **changes: Any) -> Superblock:
        """Return a copy with the fields named in `changes` exchanged."""
        return replace(self, **changes)

    def pack(self) -> bytes:
        """Return the 4096 bytes of the superblock; FormatError when a field does not fit."""
        details = json.dumps(self.details, ensure_ascii=False, separators=(",", ":")).encode()
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


def _details(data: bytes | bytearray | memoryview, length: int) -> dict[str, Any]:
    if length > MAX_DETAILS:
        raise FormatError(f"the superblock's details cannot have {length} bytes")
    try:
        details = json.loads(bytes(data[_FIELDS.size : _FIELDS.size + length]).decode())
    except (ValueError, RecursionError):
        raise FormatError("the superblock's details are not JSON") from None
    if not isinstance(details, dict):
        raise FormatError("the superblock's details are not a JSON object")
    return details
