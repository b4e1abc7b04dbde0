"""Pinned pages: ordinary memory of this process that stays where it is, known by its physical addresses.

What both sides of a jump must reach lies there. `PinnedPages` says what any machine offers; `HostPages` are those
of the machine we run on.
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
        """Raise HostError when the kernel has moved a page (locked memory may be compacted)."""
        if tuple(self._find()) != self.addresses:
            raise HostError("the kernel moved the mailbox's page: try again (vm.compact_unevictable_allowed=0)")

    def release(self) -> None:
        """Give the pages back."""
        for chunk, _ in self._pages:
            chunk.close()
        self._pages = []


class HugePage:
    """One 2 MiB page of this process: physical memory without gaps, for code that shall lie in A itself."""

    size = HUGE_PAGE

    def __init__(self) -> None:
        """Take one, asking the kernel to set one aside; HostError when it has none."""
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
        """Give the page back to the kernel, and out of the pool of huge pages."""
        self._file.release()


class HugeFile:
    """Huge pages as one file of memory: `fd`, `memory` (all of it, mapped), `count` pages and where each of them lies.

    The kernel zeroes them before it gives them. CPUs that have nothing else to do begin with that at once, and whoever
    asks for `addresses` helps, and waits until it is done.
    """

    def __init__(self, name: str, count: int) -> None:
        """Take `count` zeroed pages, set aside by the kernel for this; HostError when it has not so many together."""
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
        """Have the kernel zero pages until none is left.

        One at a time, for as long as it takes nobody else in this process may map or unmap anything.
        """
        while True:
            try:
                offset = self._left.pop() * HUGE_PAGE
            except IndexError:
                return
            page = ctypes.c_void_p(self._base + offset)
            if libc().madvise(page, ctypes.c_size_t(HUGE_PAGE), _MADV_POPULATE_WRITE):
                self.memory[offset] = 0  # a kernel before 5.14

    @functools.cached_property
    def addresses(self) -> list[int]:
        """The physical address of each page, in bytes; HostError when they are hidden."""
        self._populate()
        for thread in self._threads:
            thread.join()
        return physical_addresses(self.memory, HUGE_PAGE)

    def release(self) -> None:
        """Give the pages back to the kernel, and out of the pool of huge pages; nothing the second time."""
        if self.memory.closed:
            return
        self._left.clear()
        for thread in self._threads:
            thread.join()
        self.memory.close()
        os.close(self.fd)
        change_pool(-self.count)


def change_pool(count: int) -> int:
    """Let the kernel's pool of huge pages grow by `count`; return by how much it did, which may be less.

    HostError when it has none.
    """
    try:
        before = int(_POOL.read_text())
        _POOL.write_text(str(max(0, before + count)))
        return int(_POOL.read_text()) - before
    except OSError as error:
        raise HostError(f"the kernel has no huge pages of 2 MiB to give ({_POOL}: {error.strerror})") from None


def _pages_outside(count: int, avoid: RangeSet) -> list[tuple[mmap.mmap, int]]:
    """Return memory of ours and offsets in it: `count` locked pages outside `avoid`.

    The kernel hands out what it likes, and may have little free outside: so take more until it must.
    """
    found: list[tuple[mmap.mmap, int]] = []
    kept_away: list[mmap.mmap] = []
    while len(found) < count and len(kept_away) * _CHUNK_SIZE <= avoid.size + _MORE:
        chunk = mmap.mmap(-1, _CHUNK_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        kept_away.append(chunk)
        for offset in range(0, _CHUNK_SIZE, PAGE_SIZE):
            chunk[offset] = 1  # a page exists only when it has been written
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

    With a larger `page_size` (bytes) `memory` is made of such pages, and only their first addresses are returned.
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
