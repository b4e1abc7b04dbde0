"""Memory with a fixed physical address that belongs to no process: one huge page in a file of hugetlbfs.

A resident peer must find the channel at the address in its gate, whichever process of A switches, for as long as the
peer is resident. Locked memory is freed with its process, and the kernel may move it when it compacts memory. A huge
page in a file is neither freed nor moved; any process can open it by the file's name.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

from kjump.errors import HostError
from kjump.host.libc import libc
from kjump.host.locked_memory import HUGE_PAGE, change_pool, physical_addresses
from kjump.ranges import Range, RangeSet

SIZE = HUGE_PAGE
_TRIES = 128


class StandingPage:
    """2 MiB of A's memory at a fixed physical `address`, mapped as `memory`."""

    def __init__(self, path: Path) -> None:
        """Open the page that `create` made at `path`; HostError when it is not there any more."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"cannot open {path}: {error.strerror}") from None
        try:
            self.memory = mmap.mmap(fd, SIZE)
        except OSError as error:
            raise HostError(f"no huge page of 2 MiB could be had: {error.strerror}; free some memory") from None
        finally:
            os.close(fd)
        self.memory[0:1] = bytes(self.memory[0:1])  # the kernel allocates a page only when it is written
        self.address = physical_addresses(self.memory)[0]

    def close(self) -> None:
        """Unmap the page; it stays allocated, at its address."""
        self.memory.close()


def create(path: Path, avoid: RangeSet) -> StandingPage:
    """Make a zeroed page at `path`, outside the physical ranges `avoid`; `path` must have a folder of its own.

    The folder becomes a mount point of hugetlbfs. HostError when the kernel has no huge page to give.
    """
    _mount(path.parent)
    taken = []
    try:
        for number in range(_TRIES):
            trial = path.with_name(f"{path.name}.{number}")
            change_pool(1)
            trial.touch()
            os.truncate(trial, SIZE)
            taken.append(trial)
            page = StandingPage(trial)
            if not RangeSet([Range.of_size(page.address, SIZE)]) & avoid:
                page.memory[:] = bytes(SIZE)
                trial.rename(path)
                taken.remove(trial)
                return page
            page.close()
        raise HostError("no huge page of 2 MiB lies outside the window: free some memory")
    finally:
        for trial in taken:
            remove(trial)


def remove(path: Path) -> None:
    """Give the page at `path` back to the kernel, if it is there."""
    if path.exists():
        path.unlink()
        change_pool(-1)


def _mount(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_mount():
        return
    if libc().mount(b"hugetlbfs", os.fsencode(folder), b"hugetlbfs", ctypes.c_ulong(0), b"pagesize=2M,mode=0700"):
        why = os.strerror(ctypes.get_errno())
        raise HostError(f"cannot mount hugetlbfs at {folder}: {why}; CONFIG_HUGETLBFS and root are needed")
