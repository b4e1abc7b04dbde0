"""FIEMAP, FS_IOC_GETFLAGS: what a file system says of where a file lies and how (linux/fiemap.h, linux/fs.h).

struct fiemap         start u64, length u64, flags u32, mapped extents u32, extent count u32, reserved u32
struct fiemap_extent  logical u64, physical u64, length u64, reserved 2 u64, flags u32, reserved 3 u32
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

FIEMAP_REQUEST = 0xC020660B
"""The ioctl's number: _IOWR('f', 11, struct fiemap)."""

GETFLAGS_REQUEST = 0x80086601
"""FS_IOC_GETFLAGS on a 64-bit kernel: _IOR('f', 1, long)."""

FLAG_SYNC = 1
LAST = 0x1
MERGED = 0x1000
EXTENT_FLAGS = {
    0x2: "of unknown place",
    0x4: "not allocated yet",
    0x8: "encoded",
    0x80: "encrypted",
    0x100: "not made of whole blocks",
    0x200: "stored within metadata",
    0x400: "stored with other files' data",
    0x800: "unwritten",
    0x2000: "shared with another file",
}
"""What makes an extent unfit to be read and written behind the file system's back."""

ATTRIBUTES = {
    0x4: "compressed",
    0x10: "immutable",
    0x20: "append-only",
    0x800: "encrypted",
    0x4000: "journalled with its data",
    0x100000: "under fs-verity",
    0x10000000: "stored within its inode",
}
"""Attributes of an inode that forbid direct writes, or make its blocks something else than its contents."""

_HEADER = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQQQIIII")


@dataclass(frozen=True)
class MappedExtent:
    """Bytes of a file: `length` from `logical` on lie at byte `physical` of the device."""

    logical: int
    physical: int
    length: int
    flags: int

    @property
    def last(self) -> bool:
        """Whether it is the last of the file."""
        return bool(self.flags & LAST)

    @property
    def unfit(self) -> str:
        """What makes it unfit, in words; empty when nothing does."""
        known = [words for bit, words in EXTENT_FLAGS.items() if self.flags & bit]
        unknown = self.flags & ~(LAST | MERGED) & ~sum(EXTENT_FLAGS)
        return ", ".join(known + ([f"marked {unknown:#x}, which kjump does not know"] if unknown else []))


def request(start: int, count: int) -> bytearray:
    """Return the argument that asks for `count` extents from byte `start` of a file on; the kernel fills it."""
    return bytearray(_HEADER.pack(start, (1 << 64) - 1 - start, FLAG_SYNC, 0, count, 0) + bytes(count * _EXTENT.size))


def answer(data: bytes | bytearray) -> list[MappedExtent]:
    """Return the extents in an argument that the kernel has filled."""
    found = []
    for i in range(_HEADER.unpack_from(data)[3]):
        logical, physical, length, _, _, flags, *_ = _EXTENT.unpack_from(data, _HEADER.size + i * _EXTENT.size)
        found.append(MappedExtent(logical, physical, length, flags))
    return found


def attributes_against(flags: int) -> str:
    """Return in words which of an inode's attributes make it unfit as a target; empty when none does."""
    return ", ".join(words for bit, words in ATTRIBUTES.items() if flags & bit)
