"""The extent map of a file target: where on its device the file lies. It stands right behind the superblock.

    0     magic               8 bytes, "KJUMPMAP"
    8     count               4 bytes: how many extents
    12    zero                4 bytes
    16    cookie              16 bytes, the superblock's: a map belongs to one arming of the target
    32    extents             `count` times: byte offset on the device (8 bytes), length in bytes (8 bytes)
    ...   zeros
    end-4 checksum            4 bytes, CRC-32 (as zlib's) of all before

Its length is a multiple of 4096. All numbers are little endian; offsets and lengths are multiples of 4096. Laid end to
end the extents are the target; the first one begins with the superblock and holds all of the map.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Sequence

from kjump.errors import FormatError
from kjump.ranges import Range, align_up

MAGIC = b"KJUMPMAP"
BLOCK = 4096
MAX_EXTENTS = 4096
"""More than a file of any use needs; a map that says more is not believed."""

_HEADER = struct.Struct("<8sII16s")
_EXTENT = struct.Struct("<QQ")
_CHECKSUM = struct.Struct("<I")


def length_for(count: int) -> int:
    """Return the bytes that a map of `count` extents takes."""
    return align_up(_HEADER.size + count * _EXTENT.size + _CHECKSUM.size, BLOCK)


MAX_LENGTH = length_for(MAX_EXTENTS)


def pack(extents: Sequence[Range], cookie: bytes) -> bytes:
    """Return the map of `extents`, byte ranges of the device; FormatError when they cannot be those of a target."""
    _check(extents)
    body = _HEADER.pack(MAGIC, len(extents), 0, cookie) + b"".join(_EXTENT.pack(e.start, e.size) for e in extents)
    body = body.ljust(length_for(len(extents)) - _CHECKSUM.size, b"\0")
    return body + _CHECKSUM.pack(zlib.crc32(body))


def unpack(data: bytes, cookie: bytes) -> tuple[Range, ...]:
    """Return the extents in a map; FormatError when it is damaged, or not the one that goes with `cookie`."""
    if data[: len(MAGIC)] != MAGIC or len(data) % BLOCK or len(data) > MAX_LENGTH:
        raise FormatError("no extent map where the superblock says there is one")
    if _CHECKSUM.unpack_from(data, len(data) - _CHECKSUM.size)[0] != zlib.crc32(data[: -_CHECKSUM.size]):
        raise FormatError("the extent map of the kjump image is damaged (bad checksum)")
    _, count, _, found = _HEADER.unpack_from(data)
    if found != cookie:
        raise FormatError("the extent map is not the one that the superblock was written with")
    if count > MAX_EXTENTS or length_for(count) != len(data):
        raise FormatError("the extent map is not as long as its extents need")
    pairs = (_EXTENT.unpack_from(data, _HEADER.size + i * _EXTENT.size) for i in range(count))
    extents = tuple(Range.of_size(start, size) for start, size in pairs)
    _check(extents)
    return extents


def _check(extents: Sequence[Range]) -> None:
    """Refuse (FormatError) extents that overlap, are not whole blocks, or whose first does not hold the map."""
    if not extents or len(extents) > MAX_EXTENTS:
        raise FormatError(f"a target has 1 to {MAX_EXTENTS} extents, not {len(extents)}")
    if any(e.start % BLOCK or e.size % BLOCK or not e.size or e.end >= 1 << 63 for e in extents):
        raise FormatError("an extent is not made of whole blocks of 4096 bytes")
    ordered = sorted(extents)
    if any(a.end > b.start for a, b in itertools.pairwise(ordered)):
        raise FormatError("two extents share a block")
    if extents[0].size < BLOCK + length_for(len(extents)):
        raise FormatError(f"its first extent of {extents[0].size} bytes does not hold superblock and extent map")
