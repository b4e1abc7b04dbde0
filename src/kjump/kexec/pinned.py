"""Pinned pages: ordinary memory of this process that stays where it is, known by its physical addresses.

What both sides of a jump must reach lies there. `PinnedPages` says what any machine offers; `HostPages` are those
of the machine we run on.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import Protocol

from kjump.errors import HostError
from kjump.memory import PAGE_SIZE
from kjump.ranges import RangeSet

_PAGEMAP_PRESENT = 1 << 63
_PAGEMAP_PFN = (1 << 55) - 1
_ATTEMPTS = 4096
_HUGE_PAGE = 2 << 20


class PinnedPages(Protocol):
    """Some pages of the machine that loads and jumps; they are never swapped out by a jump."""

    @property
    def addresses(self) -> tuple[int, ...]:
        """Their physical addresses, in bytes."""
        ...

    def write(self, index: int, data: bytes) -> None:
        """Put `data` at the beginning of page `index`."""
        ...

    def read(self, index: int, length: int = PAGE_SIZE) -> bytes:
        """Return the first `length` bytes of page `index`."""
        ...

    def check(self) -> None:
        """Raise HostError when a page is no longer where it was."""
        ...

    def release(self) -> None:
        """Give the pages back; they are not used again."""
        ...


class HostPages:
    """Locked pages of this process."""

    def __init__(self, count: int, avoid: RangeSet) -> None:
        """Take `count` pages outside `avoid` (physical ranges): what a jump swaps out cannot be shared.

        HostError when they are not found, or physical addresses are hidden (CAP_SYS_ADMIN is needed).
        """
        self._pages: list[mmap.mmap] = []
        self._kept_away: list[mmap.mmap] = []
        found = []
        for _ in range(_ATTEMPTS):
            if len(self._pages) == count:
                break
            page = mmap.mmap(-1, PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            page[0] = 1  # a page exists only when it has been written
            _lock(page)
            address = _physical(page)
            if address in avoid:
                self._kept_away.append(page)  # held, or the next one would be the same
                continue
            self._pages.append(page)
            found.append(address)
        else:
            raise HostError("no page of memory outside the window could be had for the mailbox")
        self.addresses = tuple(found)

    def write(self, index: int, data: bytes) -> None:
        """Put `data` at the beginning of page `index`."""
        self._pages[index][: len(data)] = data

    def read(self, index: int, length: int = PAGE_SIZE) -> bytes:
        """Return the first `length` bytes of page `index`."""
        return bytes(self._pages[index][:length])

    def check(self) -> None:
        """Raise HostError when the kernel has moved a page (locked memory may be compacted)."""
        if any(_physical(p) != a for p, a in zip(self._pages, self.addresses, strict=True)):
            raise HostError("the kernel moved the mailbox's page: try again (vm.compact_unevictable_allowed=0)")

    def release(self) -> None:
        """Give the pages back."""
        for page in (*self._pages, *self._kept_away):
            page.close()
        self._pages.clear()
        self._kept_away.clear()


class HugePage:
    """One 2 MiB page of this process: physical memory without gaps, for code that shall lie in A itself."""

    size = _HUGE_PAGE

    def __init__(self) -> None:
        """Take one, asking the kernel to set one aside; HostError when it has none."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000  # MAP_HUGETLB
        try:
            _change_pool(1)
            self._memory = mmap.mmap(-1, _HUGE_PAGE, flags=flags)
        except OSError as error:
            raise HostError(f"no huge page of 2 MiB could be had: {error.strerror}") from None
        self._memory[0] = 0
        _lock(self._memory)
        self.address = _physical(self._memory)

    def write(self, offset: int, data: bytes) -> None:
        """Put `data` at byte `offset`."""
        self._memory[offset : offset + len(data)] = data

    def release(self) -> None:
        """Give the page back to the kernel, and out of the pool of huge pages."""
        self._memory.close()
        _change_pool(-1)


def _change_pool(count: int) -> None:
    pool = Path("/proc/sys/vm/nr_hugepages")
    pool.write_text(str(int(pool.read_text()) + count))


def _linear(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _lock(memory: mmap.mmap) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlock(ctypes.c_void_p(_linear(memory)), ctypes.c_size_t(len(memory))):
        raise HostError(f"cannot lock the mailbox in memory: {os.strerror(ctypes.get_errno())}")


def _physical(memory: mmap.mmap) -> int:
    """Return the physical address of the first page of `memory`; HostError when it is hidden."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:  # noqa: PTH123
        entry = int.from_bytes(os.pread(pagemap.fileno(), 8, _linear(memory) // PAGE_SIZE * 8), "little")
    if not entry & _PAGEMAP_PRESENT or not entry & _PAGEMAP_PFN:
        raise HostError("/proc/self/pagemap hides physical addresses: root with CAP_SYS_ADMIN is needed")
    return (entry & _PAGEMAP_PFN) * PAGE_SIZE
