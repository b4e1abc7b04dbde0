"""Pinned pages: memory of this process that is not moved, with known physical addresses.

Memory that both sides of a jump use is of this kind. `PinnedPages` is the interface; `HostPages` implements it on the
running machine.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import struct
import threading
from pathlib import Path
from typing import Protocol

from kjump.errors import HostError
from kjump.host.libc import libc
from kjump.memory import PAGE_SIZE
from kjump.ranges import RangeSet

_PAGEMAP_PRESENT = 1 << 63
_PAGEMAP_PFN = (1 << 55) - 1
_CHUNK_SIZE = 1 << 20
_MORE = 64 << 20
_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
HUGE_PAGE = 2 << 20
"""Bytes of a huge page."""
_MFD_HUGE_2MB = 21 << 26
_MADV_POPULATE_WRITE = 23


class PinnedPages(Protocol):
    """Pages of the machine that loads and jumps, which the jump does not swap out."""

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
        """Raise HostError when the physical address of a page has changed."""
        ...

    def release(self) -> None:
        """Free the pages; they must not be used afterwards."""
        ...


class HostPages:
    """Locked pages of this process."""

    def __init__(self, count: int, avoid: RangeSet) -> None:
        """Take `count` pages outside `avoid`, the physical ranges that the jump swaps out.

        HostError when they are not found, or physical addresses are hidden (CAP_SYS_ADMIN is needed).
        """
        self._pages = _pages_outside(count, avoid)
        self.addresses = tuple(self._find())

    def _find(self) -> list[int]:
        return [physical_addresses(chunk)[offset // PAGE_SIZE] for chunk, offset in self._pages]

    def write(self, index: int, data: bytes) -> None:
        """Put `data` at the beginning of page `index`."""
        chunk, offset = self._pages[index]
        chunk[offset : offset + len(data)] = data

    def read(self, index: int, length: int = PAGE_SIZE) -> bytes:
        """Return the first `length` bytes of page `index`."""
        chunk, offset = self._pages[index]
        return chunk[offset : offset + length]

    def check(self) -> None:
        """Raise HostError when the kernel has moved a page (it may compact locked memory)."""
        if tuple(self._find()) != self.addresses:
            raise HostError("the kernel moved the mailbox's page: try again (vm.compact_unevictable_allowed=0)")

    def release(self) -> None:
        """Free the pages."""
        for chunk, _ in self._pages:
            chunk.close()
        self._pages = []


class HugePage:
    """One 2 MiB page of this process: physically contiguous, for code that is entered where it lies."""

    size = HUGE_PAGE

    def __init__(self) -> None:
        """Take one, from the kernel's pool of huge pages enlarged by one; HostError when the kernel has none."""
        self._file = HugeFile("kjump-code", 1)
        try:
            (self.address,) = self._file.addresses
        except BaseException:
            self._file.release()
            raise

    def write(self, offset: int, data: bytes) -> None:
        """Put `data` at byte `offset`."""
        self._file.memory[offset : offset + len(data)] = data

    def release(self) -> None:
        """Free the page, and shrink the pool of huge pages by it."""
        self._file.release()


class HugeFile:
    """Huge pages as one file in memory: `fd`, `memory` (the whole file, mapped), `count` pages and their addresses.

    The kernel zeroes each page when it is first used. Threads on idle CPUs begin with that at once; a caller of
    `addresses` helps, and waits until all pages are done.
    """

    def __init__(self, name: str, count: int) -> None:
        """Take `count` zeroed pages, by which the kernel's pool is enlarged; HostError when it cannot supply them."""
        self.count = count
        got = change_pool(count)
        if got < count:
            change_pool(-got)
            raise HostError(f"the kernel has {got} huge pages of 2 MiB, {count} are needed")
        try:
            self.fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_HUGETLB | _MFD_HUGE_2MB)
            try:
                os.ftruncate(self.fd, count * HUGE_PAGE)
                self.memory = mmap.mmap(self.fd, count * HUGE_PAGE)
            except BaseException:
                os.close(self.fd)
                raise
        except OSError as error:
            change_pool(-count)
            raise HostError(f"{count} huge pages of 2 MiB cannot be used: {error.strerror}") from None
        self._base = _linear(self.memory)
        self._left = list(range(count))
        self._threads = [threading.Thread(target=self._populate) for _ in range(min(count, os.cpu_count() or 1) - 1)]
        for thread in self._threads:
            thread.start()

    def _populate(self) -> None:
        """Let the kernel zero pages until none is left.

        Each call covers one page only, because no thread of this process can map or unmap memory meanwhile.
        """
        while True:
            try:
                offset = self._left.pop() * HUGE_PAGE
            except IndexError:
                return
            page = ctypes.c_void_p(self._base + offset)
            if libc().madvise(page, ctypes.c_size_t(HUGE_PAGE), _MADV_POPULATE_WRITE):
                self.memory[offset] = 0  # kernels before 5.14 have no MADV_POPULATE_WRITE

    @functools.cached_property
    def addresses(self) -> list[int]:
        """The physical address of each page, in bytes; HostError when they are hidden."""
        self._populate()
        for thread in self._threads:
            thread.join()
        return physical_addresses(self.memory, HUGE_PAGE)

    def release(self) -> None:
        """Free the pages, and shrink the pool of huge pages by them; a second call does nothing."""
        if self.memory.closed:
            return
        self._left.clear()
        for thread in self._threads:
            thread.join()
        self.memory.close()
        os.close(self.fd)
        change_pool(-self.count)


def change_pool(count: int) -> int:
    """Change the size of the kernel's pool of huge pages by `count` (pages); return the change, which may be smaller.

    HostError when the kernel has no such pool.
    """
    try:
        before = int(_POOL.read_text())
        _POOL.write_text(str(max(0, before + count)))
        return int(_POOL.read_text()) - before
    except OSError as error:
        raise HostError(f"the kernel has no huge pages of 2 MiB to give ({_POOL}: {error.strerror})") from None


def _pages_outside(count: int, avoid: RangeSet) -> list[tuple[mmap.mmap, int]]:
    """Return (mapping, offset) of `count` locked pages outside `avoid` (physical ranges).

    The kernel chooses the physical pages; memory is therefore allocated until enough pages lie outside.
    """
    found: list[tuple[mmap.mmap, int]] = []
    kept_away: list[mmap.mmap] = []
    while len(found) < count and len(kept_away) * _CHUNK_SIZE <= avoid.size + _MORE:
        chunk = mmap.mmap(-1, _CHUNK_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        kept_away.append(chunk)
        for offset in range(0, _CHUNK_SIZE, PAGE_SIZE):
            chunk[offset] = 1  # the kernel allocates a page only when it is written
        for index, address in enumerate(physical_addresses(chunk)):
            if address not in avoid and len(found) < count:
                _lock(chunk, index * PAGE_SIZE, PAGE_SIZE)
                found.append((chunk, index * PAGE_SIZE))
    if len(found) < count:
        raise HostError("no page of memory outside the window could be had for the mailbox: free some memory")
    return found


def _linear(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _lock(memory: mmap.mmap, offset: int, length: int) -> None:
    if libc().mlock(ctypes.c_void_p(_linear(memory) + offset), ctypes.c_size_t(length)):
        raise HostError(f"cannot lock the mailbox in memory: {os.strerror(ctypes.get_errno())}")


def physical_addresses(memory: mmap.mmap, page_size: int = PAGE_SIZE) -> list[int]:
    """Return the physical address of each page of `memory`, from /proc/self/pagemap; HostError when hidden.

    With a larger `page_size` (bytes) `memory` must consist of such pages; one address is returned for each.
    """
    first, step = _linear(memory) // PAGE_SIZE, page_size // PAGE_SIZE
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:  # noqa: PTH123
        if step == 1:
            data = os.pread(pagemap.fileno(), len(memory) // PAGE_SIZE * 8, first * 8)
        else:
            offsets = range(first * 8, (first + len(memory) // PAGE_SIZE) * 8, step * 8)
            data = b"".join(os.pread(pagemap.fileno(), 8, offset) for offset in offsets)
    entries = struct.unpack(f"<{len(data) // 8}Q", data)
    if not all(entry & _PAGEMAP_PRESENT and entry & _PAGEMAP_PFN for entry in entries):
        raise HostError("/proc/self/pagemap hides physical addresses: root with CAP_SYS_ADMIN is needed")
    return [(entry & _PAGEMAP_PFN) * PAGE_SIZE for entry in entries]
