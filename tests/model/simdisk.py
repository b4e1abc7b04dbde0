"""A simulated disk with a volatile write cache, as the product reaches disks (`kjump.target.disks`).

What is written goes to the cache, sector by sector. A flush makes all of the cache durable. At a loss of power each
sector of the cache keeps what it held durably, or a version that was written since: `Kept` says which.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from enum import Enum

from kjump.errors import TargetError
from kjump.target.disks import FdDisk

SECTOR = 512
_BLOCK = 4096
_SUPERBLOCK = 8
"""Sectors of a superblock."""


class Kept(Enum):
    """What of a disk's cache is on the medium after a loss of power."""

    NONE = "none"
    ALL = "all"
    SUPERBLOCK = "the superblock alone"
    REST = "all but the superblock"
    RANDOM = "random"


class SimDisk:
    """One disk; `superblock_at` is the byte where a superblock begins."""

    def __init__(self, size: int, superblock_at: int = 0) -> None:
        """Make an empty one of `size` bytes."""
        self.fd = os.memfd_create("disk")
        os.ftruncate(self.fd, size)
        self.size = size
        self._superblock = range(superblock_at // SECTOR, superblock_at // SECTOR + _SUPERBLOCK)
        self._dirty: dict[int, list[bytes]] = {}

    def close(self) -> None:
        """Give the memory back."""
        os.close(self.fd)

    def write(self, at: int, data: bytes) -> None:
        """Write to the cache."""
        for offset in range(0, len(data), SECTOR):
            sector = (at + offset) // SECTOR
            versions = self._dirty.setdefault(sector, [])
            if not versions:
                versions.append(os.pread(self.fd, SECTOR, sector * SECTOR))
            versions.append(data[offset : offset + SECTOR])
        os.pwrite(self.fd, data, at)

    def flush(self) -> None:
        """Make durable what the cache holds."""
        self._dirty.clear()

    def durable(self, at: int, length: int) -> bytes:
        """Return what is durable of `length` bytes from `at` on; both are whole sectors."""
        sectors = range(at // SECTOR, (at + length) // SECTOR)
        return b"".join(
            self._dirty[s][0] if s in self._dirty else os.pread(self.fd, SECTOR, s * SECTOR) for s in sectors
        )

    def lose_power(self, kept: Kept, chance: random.Random) -> None:
        """Lose what the cache held, but for what `kept` says."""
        for sector, versions in self._dirty.items():
            if kept is Kept.RANDOM:
                version = chance.choice(versions)
            elif kept is Kept.NONE or (kept is not Kept.ALL and (sector in self._superblock) == (kept is Kept.REST)):
                version = versions[0]
            else:
                version = versions[-1]
            os.pwrite(self.fd, version, sector * SECTOR)
        self._dirty.clear()

    def noticed(self, before: bytes) -> None:
        """Put into the cache what the native core has written; `before` is what the disk held."""
        after = os.pread(self.fd, self.size, 0)
        for at in range(0, self.size, _BLOCK):
            if after[at : at + _BLOCK] == before[at : at + _BLOCK]:
                continue
            for sector in range(at // SECTOR, (at + _BLOCK) // SECTOR):
                old, new = (d[sector * SECTOR : (sector + 1) * SECTOR] for d in (before, after))
                if old != new:
                    self._dirty.setdefault(sector, [old]).append(new)


Event = Callable[[str, Callable[[], None]], None]
"""Called with what is done ("read", "write", "flush", "stream" ...) and the doing; may raise, before or after it."""


class OpenDisk(FdDisk):
    """A `SimDisk` that a kernel has opened; each access is an `event` of that kernel."""

    def __init__(self, disk: SimDisk, event: Event) -> None:
        """Open it."""
        super().__init__(os.dup(disk.fd))
        self._disk, self._event = disk, event

    def read_into(self, view: memoryview, at: int) -> int:
        """Read."""
        done: list[int] = []
        self._event("read", lambda: done.append(os.preadv(self.fd, [view], at)))
        return done[0]

    def write_from(self, view: memoryview, at: int) -> int:
        """Write to the cache."""
        self._event("write", lambda: self._disk.write(at, bytes(view)))
        return len(view)

    def flush(self) -> None:
        """Make the cache durable."""
        self._event("flush", self._disk.flush)

    @contextlib.contextmanager
    def lent(self, *, writable: bool) -> Iterator[int]:
        """Lend the disk to the native core; what it has written is in the cache then."""
        if not writable:
            self._event("pages read", lambda: None)
            yield self.fd
            return
        self._event("stream begins", lambda: None)
        before = os.pread(self.fd, self._disk.size, 0)
        yield self.fd
        self._event("stream", lambda: self._disk.noticed(before))


class SimDisks:
    """The disks of a machine, by the names of their device files; `event` is called for each access.

    `files` are names that are regular files to the running kernel.
    """

    def __init__(self, disks: dict[str, SimDisk], event: Callable[[], Event]) -> None:
        """Take the disks; `event` gives the `Event` of the kernel that runs now."""
        self._disks, self._event = disks, event
        self.files: set[str] = set()
        self.write_out_to: Callable[[], None] = lambda: None

    def open(self, path: str, *, writable: bool) -> tuple[OpenDisk, int]:
        """Open one of them."""
        if path not in self._disks:
            raise TargetError(f"target {path} cannot be opened: No such file or directory")
        disk = self._disks[path]
        return OpenDisk(disk, self._event()), disk.size

    def names(self) -> Iterator[str]:
        """Go through their names."""
        return iter(self._disks)

    def is_there(self, path: str) -> bool:
        """Tell whether there is such a disk."""
        return path in self._disks

    def is_file(self, path: str) -> bool:
        """Tell whether it is a file."""
        return path in self.files

    def write_out(self) -> None:
        """Write out what file systems hold back."""
        self.write_out_to()
