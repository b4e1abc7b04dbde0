"""What tells one state of an ext4 file system from another: its superblock, and that of its journal.

Layouts from the kernel's documentation of ext4 (Documentation/filesystems/ext4). The superblock (little endian)
lies at byte 1024; the group descriptors in the block behind it; inode 8 is the journal; its extent tree leads to the
journal's first block, where the journal's own superblock (jbd2, big endian) is.

A mount for writing changes the superblock (mount count and times); whatever is then written passes the journal, which
changes sequence or start, also when only a replay was done. So two systems that took turns on a file system cannot
both find the same identity.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, fields

from kjump.errors import FormatError
from kjump.formats.record import JsonObject, Record

SUPERBLOCK_OFFSET = 1024
SUPERBLOCK_LENGTH = 1024
_MAGIC = 0xEF53
_JOURNAL_MAGIC = 0xC03B3998
_EXTENT_MAGIC = 0xF30A
_EXTENTS_FLAG = 0x80000

_INCOMPAT_64BIT = 0x80
_DEEPEST = 5
_UUID_DIGITS = 32

Reader = Callable[[int, int], bytes]
"""Called with (byte offset, length): bytes of the device."""


@dataclass(frozen=True)
class Superblock:
    """The fields of an ext4 superblock that matter here; times in seconds since 1970."""

    block_size: int
    inode_size: int
    inodes_per_group: int
    descriptor_size: int
    uuid: str
    mount_count: int
    mount_time: int
    write_time: int
    state: int
    last_mounted: str
    journal_inode: int
    journal_uuid: str

    @classmethod
    def unpack(cls, data: bytes) -> Superblock:
        """Read a superblock from its 1024 bytes; FormatError when it is none."""
        if len(data) != SUPERBLOCK_LENGTH or _u16(data, 0x38) != _MAGIC:
            raise FormatError("no ext4 superblock here")
        shift, incompat = _u32(data, 0x18), _u32(data, 0x60)
        if shift > 6:
            raise FormatError(f"the ext4 superblock names an impossible block size (2^{10 + shift})")
        wide = incompat & _INCOMPAT_64BIT
        return cls(
            block_size=1024 << shift,
            inode_size=_u16(data, 0x58) if _u32(data, 0x4C) else 128,
            inodes_per_group=_u32(data, 0x28),
            descriptor_size=_u16(data, 0xFE) if wide else 32,
            uuid=data[0x68:0x78].hex(),
            mount_count=_u16(data, 0x34),
            mount_time=_u32(data, 0x2C) | data[0x275] << 32,
            write_time=_u32(data, 0x30) | data[0x274] << 32,
            state=_u16(data, 0x3A),
            last_mounted=data[0x88:0xC8].split(b"\0")[0].decode(errors="replace"),
            journal_inode=_u32(data, 0xE0),
            journal_uuid=data[0xD0:0xE0].hex(),
        )


@dataclass(frozen=True)
class Journal:
    """The fields of a jbd2 superblock that change: `start` is 0 when the journal is empty."""

    sequence: int
    start: int
    error: int
    uuid: str

    def to_json(self) -> JsonObject:
        """Return it for an image's facts."""
        return {"sequence": self.sequence, "start": self.start, "error": self.error, "uuid": self.uuid}

    @classmethod
    def from_json(cls, record: Record) -> Journal:
        """Read what `to_json` gave; FormatError."""
        return cls(
            record.integer("sequence"),
            record.integer("start"),
            record.integer("error", low=-(1 << 31), high=(1 << 31) - 1),
            record.text("uuid", limit=_UUID_DIGITS),
        )

    @classmethod
    def unpack(cls, data: bytes) -> Journal:
        """Read the superblock of a journal from the first bytes of its first block; FormatError when it is none."""
        magic, kind = struct.unpack_from(">II", data)
        if magic != _JOURNAL_MAGIC or kind not in (3, 4):
            raise FormatError("the file system's journal has no superblock")
        sequence, start, error = struct.unpack_from(">IIi", data, 0x18)
        return cls(sequence, start, error, data[0x30:0x40].hex())


@dataclass(frozen=True)
class Mounts:
    """The fields of a superblock that a mount changes, and the UUID; as in `Superblock`."""

    uuid: str
    mount_count: int
    mount_time: int
    write_time: int
    state: int
    last_mounted: str

    def to_json(self) -> JsonObject:
        """Return it for an image's facts."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_json(cls, record: Record) -> Mounts:
        """Read what `to_json` gave; FormatError."""
        return cls(
            record.text("uuid", limit=_UUID_DIGITS),
            record.integer("mount_count"),
            record.integer("mount_time"),
            record.integer("write_time"),
            record.integer("state"),
            record.text("last_mounted", limit=SUPERBLOCK_LENGTH),
        )


@dataclass(frozen=True)
class Identity:
    """What tells one state of an ext4 from another; without a `journal` when it lies elsewhere, or there is none."""

    superblock: Mounts
    journal: Journal | None

    def to_json(self) -> JsonObject:
        """Return it for an image's facts."""
        return {
            "superblock": self.superblock.to_json(),
            "journal": self.journal.to_json() if self.journal else None,
        }

    @classmethod
    def from_json(cls, record: Record) -> Identity:
        """Read what `to_json` gave; FormatError."""
        return cls(record.map("superblock", Mounts.from_json), record.maybe("journal", Journal.from_json))


def identity(read: Reader) -> Identity:
    """Return what `read` says of an ext4 file system; FormatError when it is no ext4 at all."""
    superblock = Superblock.unpack(read(SUPERBLOCK_OFFSET, SUPERBLOCK_LENGTH))
    mounts = Mounts(**{f.name: getattr(superblock, f.name) for f in fields(Mounts)})
    return Identity(mounts, _journal(superblock, read) if superblock.journal_inode else None)


def difference(before: Identity, now: Identity) -> str:
    """Return in words how two identities differ; empty when they are the same."""
    if before.superblock.uuid != now.superblock.uuid:
        return "it is another file system"
    found = []
    for part in ("superblock", "journal"):
        old, new = getattr(before, part), getattr(now, part)
        for name in (f.name for f in fields(old or new or Mounts)):
            was, becomes = getattr(old, name, None), getattr(new, name, None)
            if was != becomes:
                found.append(f"{part}'s {name.replace('_', ' ')} {was} -> {becomes}")
    return ", ".join(sorted(found))


def _journal(superblock: Superblock, read: Reader) -> Journal:
    block = _first_block(read(_inode_offset(superblock, superblock.journal_inode, read), 128), superblock, read)
    return Journal.unpack(read(block * superblock.block_size, 1024))


def _inode_offset(superblock: Superblock, number: int, read: Reader) -> int:
    """Return the byte offset of inode `number`, which lies in the first group."""
    if not 1 <= number <= superblock.inodes_per_group or superblock.inode_size < 128:
        raise FormatError("the journal's inode is not where ext4 keeps it")
    # With meta_bg too, the descriptors of the first group stand right behind the superblock.
    table = (SUPERBLOCK_OFFSET // superblock.block_size + 1) * superblock.block_size
    descriptor = read(table, max(superblock.descriptor_size, 32))
    block = _u32(descriptor, 0x08)
    if superblock.descriptor_size >= 64:
        block |= _u32(descriptor, 0x28) << 32
    return block * superblock.block_size + (number - 1) * superblock.inode_size


def _first_block(inode: bytes, superblock: Superblock, read: Reader) -> int:
    """Return the block that holds the first byte of a file, given its `inode`."""
    if not _u32(inode, 0x20) & _EXTENTS_FLAG:
        return _u32(inode, 0x28)  # a block map, as ext3 made it: the first direct block
    node = inode[0x28:0x64]
    for _ in range(_DEEPEST + 1):
        magic, entries, _, depth = struct.unpack_from("<4H", node)
        if magic != _EXTENT_MAGIC or not entries:
            break
        if depth == 0:
            logical, _, high, low = struct.unpack_from("<IHHI", node, 12)
            if logical:
                break
            return int(high << 32 | low)
        low, high = struct.unpack_from("<IH", node, 16)
        node = read((high << 32 | low) * superblock.block_size, superblock.block_size)
    raise FormatError("the extent tree of the file system's journal is damaged")


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")
