"""The journal of ext3 and ext4 (jbd2): its superblock, and where the log ends.

Layouts from the kernel's documentation (Documentation/filesystems/ext4/journal.rst); everything is big endian. The
log is a ring of blocks. A transaction is written behind the one before it: descriptor blocks with the blocks that
they list, revoke blocks, and a commit block, each of these three with the transaction's sequence number. The
journal's superblock says where the oldest transaction begins that may still be needed, and changes only when that
place does: a mounted file system commits many times under the same superblock. So the log is followed to its end, as
recovery does.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kjump.errors import FormatError
from kjump.formats.record import JsonObject, Record

_MAGIC = 0xC03B3998
_DESCRIPTOR, _COMMIT, _REVOKE = 1, 2, 5
_INCOMPAT_64BIT = 0x02
_INCOMPAT_CSUM_V2 = 0x08
_INCOMPAT_CSUM_V3 = 0x10
_INCOMPAT_FAST_COMMIT = 0x20
_FAST_COMMIT_BLOCKS = 256
"""How many blocks are for fast commits when the superblock does not say (fs/jbd2/journal.c)."""
_MOST_FAST_COMMIT_BLOCKS = 4096
_SAME_UUID, _LAST_TAG = 2, 8

_BEFORE = 64 << 10
_BEHIND = 1 << 20
"""Bytes before and behind the log's end that its digest covers."""
_AHEAD = 16
"""Blocks that are read at once while the log is followed."""
SUPERBLOCK_LENGTH = 1024
_UUID_DIGITS = 32
_U32 = (1 << 32) - 1

Blocks = Callable[[int, int], bytes]
"""Called with (first block, count): that many blocks of the journal."""


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
        if magic != _MAGIC or kind not in (3, 4):
            raise FormatError("the file system's journal has no superblock")
        sequence, start, error = struct.unpack_from(">IIi", data, 0x18)
        return cls(sequence, start, error, data[0x30:0x40].hex())


@dataclass(frozen=True)
class LogEnd:
    """Where a log ends: the sequence of the last commit, the block behind it, a SHA-256 of the blocks around that.

    The digest also covers the blocks for fast commits, which are written without a new sequence.
    """

    last_commit: int
    end: int
    digest: str

    def to_json(self) -> JsonObject:
        """Return it for an image's facts."""
        return {"last_commit": self.last_commit, "end": self.end, "digest": self.digest}

    @classmethod
    def from_json(cls, record: Record) -> LogEnd:
        """Read what `to_json` gave; FormatError."""
        return cls(
            record.integer("last_commit", high=_U32),
            record.integer("end", high=_U32),
            record.hexadecimal("digest", length=32).hex(),
        )


def check_superblock(superblock: bytes, block_size: int) -> None:
    """Raise FormatError when `log_end` could not follow the log of a journal with this superblock."""
    _Log(lambda first, count: b"", superblock, block_size)


def log_end(read: Blocks, superblock: bytes, block_size: int) -> LogEnd:
    """Follow the log of a journal to its end; FormatError when `superblock`, its first 1024 bytes, cannot be true."""
    return _Log(read, superblock, block_size).end()


class _Log:
    """A journal's log: the ring of its blocks from `first` up to `last`."""

    def __init__(self, read: Blocks, superblock: bytes, block_size: int) -> None:
        self._read = read
        fields: tuple[int, ...] = struct.unpack_from(">5I", superblock, 0xC)
        self._size, self._length, self._first, self._sequence, self._start = fields
        wide = superblock[7] == 4  # a superblock of version 1 has no features
        more: tuple[int, ...] = struct.unpack_from(">I40xII", superblock, 0x28) if wide else (0, 0, 0)
        self._features, fast, self._head = more
        self._fast = (fast or _FAST_COMMIT_BLOCKS) if self._features & _INCOMPAT_FAST_COMMIT else 0
        self._last = self._length - self._fast
        inside = range(max(self._first, 1), self._last)
        if self._size != block_size or not inside or (self._start and self._start not in inside):
            raise FormatError("the superblock of the file system's journal is damaged")
        if self._fast > _MOST_FAST_COMMIT_BLOCKS:
            raise FormatError(f"the file system's journal has {self._fast} blocks for fast commits: too many")
        self._first = inside.start
        self._known, self._at = b"", 0

    def end(self) -> LogEnd:
        """Return where the log ends."""
        import hashlib  # not needed before the jump, and slow to load

        last, end = self._follow()
        found = hashlib.sha256()
        before, behind = max(1, _BEFORE // self._size), _BEHIND // self._size
        whole = self._last - self._first
        for first, count in self._ring(end - before, min(before + behind, whole)):
            found.update(self._read(first, count))
        for first in range(self._last, self._length, behind):
            found.update(self._read(first, min(behind, self._length - first)))
        return LogEnd(last, end, found.hexdigest())

    def _follow(self) -> tuple[int, int]:
        """Return the sequence of the last commit, and the block behind it."""
        sequence, at = self._sequence, self._start
        if not at:  # empty: the first commit changes the superblock
            return (sequence - 1) & _U32, self._head if self._first <= self._head < self._last else self._first
        end, seen = at, 0
        while seen < self._last - self._first:
            block = self._block(at)
            magic, kind, number = struct.unpack_from(">3I", block)
            if magic != _MAGIC or number != sequence or kind not in (_DESCRIPTOR, _COMMIT, _REVOKE):
                break
            step = 1 + (self._tags(block) if kind == _DESCRIPTOR else 0)
            at, seen = self._wrapped(at + step), seen + step
            if kind == _COMMIT:
                sequence, end = (sequence + 1) & _U32, at
        return (sequence - 1) & _U32, end

    def _tags(self, block: bytes) -> int:
        """Return how many blocks a descriptor block lists, which follow it."""
        third = bool(self._features & _INCOMPAT_CSUM_V3)
        checked = third or bool(self._features & _INCOMPAT_CSUM_V2)
        length = 16 if third else 8 + (2 if checked else 0) + (4 if self._features & _INCOMPAT_64BIT else 0)
        at, end, count = 12, len(block) - (4 if checked else 0), 0
        while at + length <= end:
            flags = struct.unpack_from(">I", block, at + 4)[0] & 0xFFFF if third else _u16(block, at + 6)
            count += 1
            at += length + (0 if flags & _SAME_UUID else 16)
            if flags & _LAST_TAG:
                break
        return count

    def _block(self, number: int) -> bytes:
        if not self._at <= number < self._at + len(self._known) // self._size:
            self._known, self._at = self._read(number, min(_AHEAD, self._last - number)), number
        start = (number - self._at) * self._size
        return self._known[start : start + self._size]

    def _wrapped(self, number: int) -> int:
        return self._first + (number - self._first) % (self._last - self._first)

    def _ring(self, first: int, count: int) -> Iterable[tuple[int, int]]:
        """Go through (first block, count) of `count` blocks of the ring."""
        first = self._wrapped(first)
        straight = min(count, self._last - first)
        yield first, straight
        if count > straight:
            yield self._first, count - straight


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")
