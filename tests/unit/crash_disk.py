"""The disk of the machine in `crash`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kjump.formats import superblock
from kjump.target.disks import FdDisk

if TYPE_CHECKING:
    from crash import Machine

DEVICE = "/dev/simulated"
_SIZE = 1 << 20


class Disk:
    """A disk with a volatile write cache: sectors that were written since the last flush may be lost with the power."""

    def __init__(self) -> None:
        """Make an empty one."""
        self.fd = os.memfd_create("disk")
        os.ftruncate(self.fd, _SIZE)
        self._durable = bytearray(_SIZE)

    def flush(self) -> None:
        """Make durable what the cache holds."""
        self._durable[:] = os.pread(self.fd, _SIZE, 0)

    def lose_power(self, *, cache: bool) -> None:
        """Keep what is durable, and with `cache` also what was only in the cache."""
        if cache:
            self.flush()
        os.pwrite(self.fd, self._durable, 0)

    def superblock(self) -> superblock.Superblock:
        """Return what stands there now."""
        return superblock.Superblock.unpack(os.pread(self.fd, 4096, 0))


class _OpenDisk(FdDisk):
    """The disk, opened by the kernel `who`."""

    def __init__(self, machine: Machine, who: str) -> None:
        super().__init__(os.dup(machine.disk.fd))
        self._machine, self._who = machine, who

    def _event(self, what: str) -> None:
        self._machine.alive(self._who)
        self._machine.event(self._who, what)
        self._machine.alive(self._who)

    def read_into(self, view: memoryview, at: int) -> int:
        self._event("read")
        return super().read_into(view, at)

    def write_from(self, view: memoryview, at: int) -> int:
        self._event("write")
        return super().write_from(view, at)

    def flush(self) -> None:
        self._event("flush")
        self._machine.disk.flush()


class SimDisks:
    """The disks of the machine: one."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def open(self, path: str, *, writable: bool) -> tuple[_OpenDisk, int]:
        assert path == DEVICE
        return _OpenDisk(self._machine, self._machine._runs), _SIZE

    def names(self) -> Iterator[str]:
        return iter([DEVICE])

    def is_there(self, path: str) -> bool:
        return True
