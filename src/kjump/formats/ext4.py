"""What tells one state of an ext4 file system from another: its superblock, and that of its journal.

Layouts from the kernel's documentation of ext4 (Documentation/filesystems/ext4). The superblock (little endian)
lies at byte 1024; the group descriptors in the block behind it; inode 8 is the journal; its extent tree, or on ext3
its block map, leads to the journal's blocks.

A mount for writing changes the superblock (mount count and times). Whatever is then written, renamed or replayed
passes the journal; while the file system stays mounted only the end of its log moves (see `formats.jbd2`). So two
systems that took turns on a file system cannot both find the same identity.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

from kjump.errors import FormatError
from kjump.formats import jbd2
from kjump.formats.jbd2 import Journal, LogEnd
from kjump.formats.record import JsonObject, Record

SUPERBLOCK_OFFSET = 1024
SUPERBLOCK_LENGTH = 1024
_MAGIC = 0xEF53
_EXTENT_MAGIC = 0xF30A
_EXTENTS_FLAG = 0x80000

_INCOMPAT_64BIT = 0x80
_COMPAT_HAS_JOURNAL = 0x4
_DEEPEST = 5
_DIRECT = 12
_MOST_EXTENTS = 1 << 16
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
            journal_inode=_u32(data, 0xE0) if _u32(data, 0x5C) & _COMPAT_HAS_JOURNAL else 0,
            journal_uuid=data[0xD0:0xE0].hex(),
        )


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
    """What tells one state of an ext4 from another; without `journal` and `log` when it lies elsewhere, or is none."""

    superblock: Mounts
    journal: Journal | None
    log: LogEnd | None = None

    def to_json(self) -> JsonObject:
        """Return it for an image's facts."""
        return {
            "superblock": self.superblock.to_json(),
            "journal": self.journal.to_json() if self.journal else None,
            "log": self.log.to_json() if self.log else None,
        }

    @classmethod
    def from_json(cls, record: Record) -> Identity:
        """Read what `to_json` gave; FormatError."""
        return cls(
            record.map("superblock", Mounts.from_json),
            record.maybe("journal", Journal.from_json),
            record.maybe("log", LogEnd.from_json),
        )


def identity(read: Reader) -> Identity:
    """Return what `read` says of an ext4 file system; FormatError when it is no ext4 at all."""
    superblock = _superblock(read)
    mounts = Mounts(**{f.name: getattr(superblock, f.name) for f in fields(Mounts)})
    if not superblock.journal_inode:
        return Identity(mounts, None)
    blocks = _JournalFile(superblock, read)
    head = blocks.read(0, 1)[: jbd2.SUPERBLOCK_LENGTH]
    return Identity(mounts, Journal.unpack(head), jbd2.log_end(blocks.read, head, superblock.block_size))


def has_journal_inside(read: Reader) -> bool:
    """Tell whether the journal is a file in the file system; FormatError when that or the file system is damaged.

    If so, `identity` can follow its log.
    """
    superblock = _superblock(read)
    if not superblock.journal_inode:
        return False
    head = _JournalFile(superblock, read).read(0, 1)[: jbd2.SUPERBLOCK_LENGTH]
    Journal.unpack(head)
    jbd2.check_superblock(head, superblock.block_size)
    return True


def difference(before: Identity, now: Identity) -> str:
    """Return in words how two identities differ; empty when they are the same."""
    if before.superblock.uuid != now.superblock.uuid:
        return "it is another file system"
    found = []
    for part in ("superblock", "journal", "log"):
        old, new = getattr(before, part), getattr(now, part)
        for name in (f.name for f in fields(old or new or Mounts)):
            was, becomes = getattr(old, name, None), getattr(new, name, None)
            if was != becomes and name != "digest":
                found.append(f"{part}'s {name.replace('_', ' ')} {was} -> {becomes}")
    if before.log != now.log and not any(item.startswith("log") for item in found):
        found.append("log's blocks")
    return ", ".join(sorted(found))


def _superblock(read: Reader) -> Superblock:
    return Superblock.unpack(read(SUPERBLOCK_OFFSET, SUPERBLOCK_LENGTH))


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


class _JournalFile:
    """The blocks of the journal's file."""

    def __init__(self, superblock: Superblock, read: Reader) -> None:
        self._read, self._size = read, superblock.block_size
        self._inode = read(_inode_offset(superblock, superblock.journal_inode, read), 128)
        self._tables: dict[int, bytes] = {}
        self._extents: list[tuple[int, int, int]] | None = None
        if _u32(self._inode, 0x20) & _EXTENTS_FLAG:
            self._extents = []
            self._gather(self._inode[0x28:0x64], _DEEPEST)

    def read(self, first: int, count: int) -> bytes:
        """Return `count` blocks of the file; FormatError where it has none."""
        pieces = []
        for block, length in self._runs(first, count):
            pieces.append(self._read(block * self._size, length * self._size))
        return b"".join(pieces)

    def _runs(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """Go through (block of the device, count) of `count` blocks of the file, neighbours together."""
        start = length = 0
        while count:
            block, straight = self._place(first)
            step = min(straight, count)
            if length and start + length == block:
                length += step
            else:
                if length:
                    yield start, length
                start, length = block, step
            first, count = first + step, count - step
        if length:
            yield start, length

    def _place(self, number: int) -> tuple[int, int]:
        """Return where block `number` of the file lies, and how many follow it there."""
        if self._extents is None:
            return self._mapped(number), 1
        for logical, block, length in self._extents:
            if logical <= number < logical + length:
                return block + number - logical, logical + length - number
        raise _damaged()

    def _gather(self, node: bytes, levels: int) -> None:
        """Take the extents of a `node` of the extent tree, which has at most `levels` below it."""
        magic, entries, _, depth = struct.unpack_from("<4H", node)
        if magic != _EXTENT_MAGIC or not entries or 12 + 12 * entries > len(node) or depth > levels:
            raise _damaged()
        assert self._extents is not None
        for at in range(12, 12 + 12 * entries, 12):
            if depth:
                low, high = struct.unpack_from("<IH", node, at + 4)
                self._gather(self._read((high << 32 | low) * self._size, self._size), depth - 1)
                continue
            logical, length, high, low = struct.unpack_from("<IHHI", node, at)
            self._extents.append((logical, high << 32 | low, length if length <= 1 << 15 else length - (1 << 15)))
            if len(self._extents) > _MOST_EXTENTS:
                raise _damaged()

    def _mapped(self, number: int) -> int:
        """Return where block `number` lies by a block map, as ext3 has it: direct, then by one to three tables."""
        if number < _DIRECT:
            return _u32(self._inode, 0x28 + 4 * number) or self._none()
        number -= _DIRECT
        each = self._size // 4
        for levels in (1, 2, 3):
            if number < each**levels:
                block = _u32(self._inode, 0x28 + 4 * (_DIRECT + levels - 1)) or self._none()
                for power in range(levels - 1, -1, -1):
                    block = _u32(self._table(block), number // each**power % each * 4) or self._none()
                return block
            number -= each**levels
        return self._none()

    def _table(self, block: int) -> bytes:
        if block not in self._tables:
            if len(self._tables) > _MOST_EXTENTS:
                raise _damaged()
            self._tables[block] = self._read(block * self._size, self._size)
        return self._tables[block]

    def _none(self) -> int:
        raise _damaged()


def _damaged() -> FormatError:
    return FormatError("the extent tree of the file system's journal is damaged")


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")
