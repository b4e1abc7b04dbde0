"""The emulated machine's memory: one block from physical address 0, shared with the emulated CPU."""

from __future__ import annotations

import ctypes
import mmap

from kjump.errors import FormatError
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

LOW_END = 0x9F000
HIGH_START = 0x100000


class Ram:
    """`size` bytes of memory, a multiple of the page size; implements `PhysicalMemory`."""

    def __init__(self, size: int) -> None:
        """Take zeroed memory."""
        self.size = size
        self._bytes = mmap.mmap(-1, size)
        self._pin = ctypes.c_char.from_buffer(self._bytes)

    @property
    def pointer(self) -> int:
        """The address of the memory in this process."""
        return ctypes.addressof(self._pin)

    @property
    def ranges(self) -> RangeSet:
        """All of it."""
        return RangeSet([Range(0, self.size)])

    @property
    def usable(self) -> RangeSet:
        """The part that an operating system may use: without the first page and the ISA hole below 1 MiB."""
        return RangeSet([Range(PAGE_SIZE, LOW_END), Range(HIGH_START, self.size)])

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes from physical `address`; FormatError beyond the end."""
        if not 0 <= address <= address + length <= self.size:
            raise FormatError(f"no memory at physical address {address:#x}, {length} bytes")
        return self._bytes[address : address + length]

    def write(self, address: int, data: bytes) -> None:
        """Put `data` at physical `address`; FormatError beyond the end."""
        if not 0 <= address <= address + len(data) <= self.size:
            raise FormatError(f"no memory at physical address {address:#x}, {len(data)} bytes")
        self._bytes[address : address + len(data)] = data

    def word(self, address: int, size: int = 8) -> int:
        """Return the little-endian number of `size` bytes at `address`."""
        return int.from_bytes(self.read(address, size), "little")

    def put_word(self, address: int, value: int, size: int = 8) -> None:
        """Put a little-endian number of `size` bytes at `address`."""
        self.write(address, value.to_bytes(size, "little"))

    def snapshot(self) -> bytes:
        """Return a copy of all memory."""
        return self._bytes[:]

    def differing_pages(self, before: bytes) -> list[int]:
        """Return the addresses of the pages that are not as in `before`, a `snapshot`."""
        step = 64 * PAGE_SIZE
        found = []
        for start in range(0, self.size, step):
            if self._bytes[start : start + step] == before[start : start + step]:
                continue
            for page in range(start, min(start + step, self.size), PAGE_SIZE):
                if self._bytes[page : page + PAGE_SIZE] != before[page : page + PAGE_SIZE]:
                    found.append(page)
        return found
