"""What tells one state of an XFS from another: its UUID, and where its log ends.

Layouts from the kernel's documentation of XFS (XFS Algorithms & Data Structures: superblocks, journaling log);
everything is big endian. Every change of metadata passes the log, a ring of basic blocks of 512 bytes. Each block
begins with the number of the cycle in which it was written, or, the header of a record, with a magic number and then
the cycle. The log ends where the cycle goes down; the next record begins there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kjump.errors import FormatError
from kjump.formats.record import JsonObject, Record

SUPERBLOCK_LENGTH = 512
_MAGIC = b"XFSB"
_RECORD = 0xFEEDBABE
_BASIC = 512
_BEFORE = 128
_BEHIND = 1024
"""Basic blocks before and behind the log's end that its digest covers."""
_LARGEST_LOG = 1 << 32
_U32 = (1 << 32) - 1

Reader = Callable[[int, int], bytes]
"""Called with (byte offset, length): bytes of the device."""


@dataclass(frozen=True)
class Identity:
    """The file system's UUID, the log's `cycle`, its `end` in basic blocks, and a SHA-256 of the blocks around that."""

    uuid: str
    cycle: int
    end: int
    digest: str

    def to_json(self) -> JsonObject:
        """Return it for an image's facts."""
        return {"uuid": self.uuid, "cycle": self.cycle, "end": self.end, "digest": self.digest}

    @classmethod
    def from_json(cls, record: Record) -> Identity:
        """Read what `to_json` gave; FormatError."""
        return cls(
            record.hexadecimal("uuid", length=16).hex(),
            record.integer("cycle", high=_U32),
            record.integer("end", high=_LARGEST_LOG // _BASIC),
            record.hexadecimal("digest", length=32).hex(),
        )


@dataclass(frozen=True)
class _Log:
    """Where the log lies: byte offset and length on the device."""

    offset: int
    length: int


def has_log_inside(read: Reader) -> bool:
    """Tell whether the log lies in the file system; FormatError when it is no XFS."""
    return _log(read(0, SUPERBLOCK_LENGTH)) is not None


def identity(read: Reader) -> Identity | None:
    """Return what `read` says of an XFS file system, None when its log is elsewhere; FormatError when it is no XFS."""
    superblock = read(0, SUPERBLOCK_LENGTH)
    log = _log(superblock)
    if log is None:
        return None
    import hashlib  # not needed before the jump, and slow to load

    cycle, end = _end(read, log)
    digest = hashlib.sha256()
    for offset, length in _around(log, end):
        digest.update(read(offset, length))
    return Identity(superblock[32:48].hex(), cycle, end, digest.hexdigest())


def difference(before: Identity, now: Identity) -> str:
    """Return in words how two identities differ; empty when they are the same."""
    if before.uuid != now.uuid:
        return "it is another file system"
    found = [
        f"log's {name} {was} -> {becomes}"
        for name, was, becomes in (("cycle", before.cycle, now.cycle), ("end", before.end, now.end))
        if was != becomes
    ]
    return ", ".join(found) or ("log's blocks" if before.digest != now.digest else "")


def _log(superblock: bytes) -> _Log | None:
    """Return where a superblock says that the log lies, None when it is on a device of its own; FormatError."""
    if len(superblock) != SUPERBLOCK_LENGTH or superblock[:4] != _MAGIC:
        raise FormatError("no XFS superblock here")
    (block_size,) = struct.unpack_from(">I", superblock, 4)
    (start,) = struct.unpack_from(">Q", superblock, 48)
    group_size, groups, _, blocks = struct.unpack_from(">4I", superblock, 84)
    shift = superblock[124]
    if not start:
        return None
    group, within = start >> shift, start & ((1 << shift) - 1)
    length = blocks * block_size
    good = block_size in (1 << n for n in range(9, 17)) and shift < 32 and group < groups and within < group_size
    if not good or not 0 < length <= _LARGEST_LOG:
        raise FormatError("the XFS superblock names an impossible log")
    return _Log((group * group_size + within) * block_size, length)


def _end(read: Reader, log: _Log) -> tuple[int, int]:
    """Return the newest cycle and the basic block behind the last one of that cycle, found by halving."""
    count = log.length // _BASIC
    newest = _cycle(read, log, 0)
    low, high = 0, count  # block `low` is of the newest cycle, block `high` is not, or is none
    while high - low > 1:
        middle = (low + high) // 2
        if _cycle(read, log, middle) == newest:
            low = middle
        else:
            high = middle
    return newest, high % count


def _cycle(read: Reader, log: _Log, block: int) -> int:
    first, second = struct.unpack(">II", read(log.offset + block * _BASIC, 8))
    return int(second if first == _RECORD else first)


def _around(log: _Log, end: int) -> Iterator[tuple[int, int]]:
    """Go through (byte offset, length) of the basic blocks around the log's end."""
    count = log.length // _BASIC
    wanted = min(_BEFORE + _BEHIND, count)
    first = (end - _BEFORE) % count
    straight = min(wanted, count - first)
    yield log.offset + first * _BASIC, straight * _BASIC
    if wanted > straight:
        yield log.offset, (wanted - straight) * _BASIC
