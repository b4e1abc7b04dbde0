"""Block devices, behind one small class, so that a simulated disk can stand in for a real one.

`current()` gives the machine's disks. A disk that is open (`Disk`) is read, written and flushed; the native core is
lent a file descriptor of it for the time of one call.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from kjump.errors import TargetError

_BLKGETSIZE64 = 0x80081272


class Disk(Protocol):
    """An open disk, partition, or file: all access is direct (O_DIRECT). Methods raise OSError."""

    def read_into(self, view: memoryview, at: int) -> int:
        """Fill `view` from byte `at` on; return how many bytes were read, 0 at the end."""
        ...

    def write_from(self, view: memoryview, at: int) -> int:
        """Write `view` at byte `at`; return how many bytes were written."""
        ...

    def flush(self) -> None:
        """Return when all that was written is on the medium."""
        ...

    def lent(self, *, writable: bool) -> contextlib.AbstractContextManager[int]:
        """Give a file descriptor to the native core, to read from or, if `writable`, to write to."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


class Disks(Protocol):
    """The disks of a machine."""

    def open(self, path: str, *, writable: bool) -> tuple[Disk, int]:
        """Open a block device, exclusively if `writable`; return it and its size in bytes.

        TargetError when it is missing, in use, or no block device.
        """
        ...

    def names(self) -> Iterator[str]:
        """Go through the device files of all block devices there are (disks and partitions)."""
        ...

    def is_there(self, path: str) -> bool:
        """Tell whether `path` is a block device."""
        ...

    def is_file(self, path: str) -> bool:
        """Tell whether `path` is a regular file; OSError when there is nothing."""
        ...

    def write_out(self) -> None:
        """Write out what the file systems of the running kernel hold back (sync)."""
        ...


class FdDisk:
    """A disk or file behind the file descriptor `fd`, which is closed with it."""

    def __init__(self, fd: int) -> None:
        """Take `fd`, opened with O_DIRECT."""
        self.fd = fd

    def read_into(self, view: memoryview, at: int) -> int:
        """Fill `view` from byte `at` on."""
        return os.preadv(self.fd, [view], at)

    def write_from(self, view: memoryview, at: int) -> int:
        """Write `view` at byte `at`."""
        return os.pwritev(self.fd, [view], at)

    def flush(self) -> None:
        """Return when all that was written is on the medium."""
        os.fsync(self.fd)

    @contextlib.contextmanager
    def lent(self, *, writable: bool) -> Iterator[int]:
        """Give the file descriptor to the native core."""
        yield self.fd

    def close(self) -> None:
        """Close it."""
        os.close(self.fd)


class HostDisks:
    """The disks of the running kernel."""

    def open(self, path: str, *, writable: bool) -> tuple[Disk, int]:
        """Open a block device; Linux refuses to open exclusively what is mounted or in use as swap."""
        flags = os.O_DIRECT | os.O_CLOEXEC | (os.O_RDWR | os.O_EXCL if writable else os.O_RDONLY)
        try:
            fd = os.open(path, flags)
        except OSError as error:
            why = "it is mounted, or in use as swap" if error.errno == errno.EBUSY else error.strerror
            raise TargetError(f"target {path} cannot be opened: {why}") from None
        try:
            return FdDisk(fd), _device_size(fd, path)
        except BaseException:
            os.close(fd)
            raise

    def names(self) -> Iterator[str]:
        """Go through the device files of all block devices."""
        try:
            names = sorted(os.listdir("/sys/class/block"))  # noqa: PTH208
        except OSError:
            return
        for name in names:
            yield "/dev/" + name.replace("!", "/")

    def is_there(self, path: str) -> bool:
        """Tell whether `path` is a block device."""
        try:
            return stat.S_ISBLK(Path(path).stat().st_mode)
        except OSError:
            return False

    def is_file(self, path: str) -> bool:
        """Tell whether `path` is a regular file."""
        return stat.S_ISREG(Path(path).stat().st_mode)

    def write_out(self) -> None:
        """Write out what the file systems of the running kernel hold back."""
        os.sync()


def _device_size(fd: int, path: str) -> int:
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        raise TargetError(f"target {path} is not a block device: give a partition or disk")
    size = bytearray(8)
    fcntl.ioctl(fd, _BLKGETSIZE64, size)
    return int.from_bytes(size, "little")


_current: Disks = HostDisks()


def current() -> Disks:
    """Return the disks in use."""
    return _current


@contextlib.contextmanager
def used(disks: Disks) -> Iterator[None]:
    """Have `disks` in use while the context lasts; for all threads."""
    global _current
    before, _current = _current, disks
    try:
        yield
    finally:
        _current = before
