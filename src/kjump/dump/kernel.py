"""How a kernel lays out its memory, learned from VMCOREINFO alone.

Newest name first, never by version number. Sources: Documentation/admin-guide/kdump/vmcoreinfo.rst for the
entries, arch/x86 page table format for the walk, include/linux/mmzone.h for SPARSEMEM sections.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from kjump.errors import FormatError
from kjump.formats.vmcoreinfo import VmcoreInfo
from kjump.memory import PAGE_SHIFT, PAGE_SIZE, PhysicalMemory
from kjump.ranges import Range, align_up

_START_KERNEL_MAP = 0xFFFFFFFF80000000
_PRESENT = 0x1
_LARGE = 0x80
_FRAME = 0x000F_FFFF_FFFF_F000
_SECTION_HAS_MAP = 0x2
_SECTION_FLAGS = 0x3F
"""Flags take the bits below SECTION_MAP_LAST_BIT, six at most so far; memory maps are aligned to far more."""


@dataclass(frozen=True)
class PageStructs:
    """The struct pages of consecutive frames: `count` from `first` on, at kernel linear address `linear`."""

    first: int
    count: int
    linear: int


class KernelLayout:
    """An x86_64 kernel's memory: linear addresses to physical ones, and where its page structures are."""

    def __init__(self, memory: PhysicalMemory, info: VmcoreInfo) -> None:
        """Take the kernel whose memory is `memory` and whose VMCOREINFO is `info`."""
        self._memory = memory
        self.info = info
        self._levels = 5 if info.get_number("pgtable_l5_enabled", 0) else 4
        self._encryption = info.get_number("sme_mask", 0)
        root = info.symbol("init_top_pgt")
        self._root = root - _START_KERNEL_MAP + info.number("phys_base")
        self._pages_per_section = 1 << (info.get_number("SECTION_SIZE_BITS", 27) - PAGE_SHIFT)
        self._memory_end = max((r.end for r in memory.ranges), default=0)
        self._tables: dict[int, tuple[int, ...]] = {}

    def _table(self, address: int) -> tuple[int, ...]:
        table = self._tables.get(address)
        if table is None:
            table = struct.unpack("<512Q", self._memory.read(address, PAGE_SIZE))
            self._tables[address] = table
        return table

    def translate(self, linear: int) -> Range:
        """Return the physical range from `linear` to the end of the page (4 KiB, 2 MiB or 1 GiB) it lies in.

        FormatError when the address is not mapped.
        """
        table_at = self._root
        for level in range(self._levels - 1, -1, -1):
            shift = PAGE_SHIFT + 9 * level
            entry = self._table(table_at)[linear >> shift & 511] & ~self._encryption
            if not entry & _PRESENT:
                raise FormatError(f"kernel address {linear:#x} is not mapped (level {level + 1} entry is empty)")
            if level == 0 or (level <= 2 and entry & _LARGE):
                size = 1 << shift
                base = entry & _FRAME & ~(size - 1)
                return Range(base + (linear & size - 1), base + size)
            table_at = entry & _FRAME
        raise AssertionError("a page table walk ends at level 1")

    def read(self, linear: int, length: int) -> bytes:
        """Return `length` bytes from the kernel's linear address `linear`; FormatError when not mapped."""
        parts = []
        while length > 0:
            physical = self.translate(linear)
            size = min(length, physical.size)
            parts.append(self._memory.read(physical.start, size))
            linear += size
            length -= size
        return b"".join(parts)

    def read_u64(self, linear: int) -> int:
        """Return the little-endian u64 at the kernel's linear address `linear`."""
        return int(struct.unpack("<Q", self.read(linear, 8))[0])

    def page_structs(self) -> Iterator[PageStructs]:
        """Go through the memory map (SPARSEMEM sections) in ascending order of frames."""
        info = self.info
        section_size = info.size("mem_section")
        map_offset = info.offset("mem_section.section_mem_map")
        pages_per_section = self._pages_per_section
        stride = info.size("page")
        per_root = PAGE_SIZE // section_size
        for root_index, root in self._section_roots():
            sections = self.read(root, per_root * section_size)
            for i in range(per_root):
                coded = struct.unpack_from("<Q", sections, i * section_size + map_offset)[0]
                if not coded & _SECTION_HAS_MAP:
                    continue
                first = (root_index * per_root + i) * pages_per_section
                # The low bits are flags; the rest is biased so that adding the frame number gives its struct.
                base = coded & ~_SECTION_FLAGS
                yield PageStructs(first, pages_per_section, (base + first * stride) % (1 << 64))

    def _section_roots(self) -> Iterator[tuple[int, int]]:
        """Yield (index, linear address) of each page of sections that exists (SPARSEMEM_EXTREME).

        VMCOREINFO gives the value of `mem_section`: the array of pointers itself.
        """
        array = self.info.symbol("mem_section")
        pages = self._memory_end >> PAGE_SHIFT
        per_root = self._pages_per_section * (PAGE_SIZE // self.info.size("mem_section"))
        length = min(self.info.length("mem_section"), align_up(pages, per_root) // per_root)
        pointers = struct.unpack(f"<{length}Q", self.read(array, length * 8))
        yield from ((index, pointer) for index, pointer in enumerate(pointers) if pointer)
