"""A kernel's memory layout, found by VMCOREINFO alone: page tables and struct pages.

Entries are tried by name, newest first, never by version number. Known are x86_64 with 4 and 5 levels of page tables,
and i386 with PAE; SPARSEMEM with a table of sections of one or two levels, and FLATMEM. Sources:
Documentation/admin-guide/kdump/vmcoreinfo.rst for the entries, the x86 page table formats for the walk,
include/linux/mmzone.h for SPARSEMEM sections.
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
_PAGE_OFFSETS_32 = (0xC0000000, 0xB0000000, 0x80000000, 0x78000000, 0x40000000)
_PRESENT = 0x1
_LARGE = 0x80
_FRAME = 0x000F_FFFF_FFFF_F000
_SECTION_HAS_MAP = 0x2
_SECTION_FLAGS = 0x3F
"""Mask of the flags in section_mem_map: the bits below SECTION_MAP_LAST_BIT, at most six so far. The addresses of
memory maps have more low bits clear than that."""
_MOST_TABLES = 2048
_LEAST_SECTION_BITS, _MOST_SECTION_BITS = 20, 40
_LARGEST_SECTION = 256


@dataclass(frozen=True)
class PageStructs:
    """The struct pages of `count` consecutive frames from `first` on, at the kernel's linear address `linear`."""

    first: int
    count: int
    linear: int


class KernelLayout:
    """An x86 kernel's memory layout: translates linear addresses to physical ones, and finds the struct pages.

    `word` is the size of the kernel's unsigned long in bytes.
    """

    def __init__(self, memory: PhysicalMemory, info: VmcoreInfo) -> None:
        """Use the kernel whose memory is `memory` and whose VMCOREINFO is `info`."""
        self._memory = memory
        self.info = info
        self._encryption = info.get_number("sme_mask", 0)
        ranges = memory.ranges
        self._memory_end = max((r.end for r in ranges), default=0)
        self.memory_size = ranges.size
        """Bytes of memory that can be read."""
        self._tables: dict[int, tuple[int, ...]] = {}
        if info.page_size != PAGE_SIZE:
            raise FormatError(f"this kernel's pages have {info.page_size} bytes: it is not an x86 kernel")
        self.word = 4 if info.config("X86_PAE") else 8
        if self.word == 4:
            self._levels = 3
            self._root = self._find_pae_root()
        else:
            self._levels = 5 if info.get_number("pgtable_l5_enabled", 0) else 4
            self._root = self._find_root()

    @property
    def root(self) -> int:
        """The physical address of the kernel's top-level page table."""
        return self._root

    def _find_root(self) -> int:
        info = self.info
        if "SYMBOL(init_top_pgt)" not in info.entries and 0 < info.get_symbol("swapper_pg_dir", 0) < 1 << 32:
            raise FormatError("this is an i386 kernel without PAE, whose page tables kjump does not read")
        if "SYMBOL(init_level4_pgt)" in info.entries:
            raise FormatError("this kernel is from before 4.13, and kjump does not read its page tables")
        root = info.symbol("init_top_pgt") - _START_KERNEL_MAP + info.number("phys_base")
        if not 0 <= root < self._memory_end or root % PAGE_SIZE:
            raise FormatError(f"the kernel's page tables cannot be at {root:#x}: VMCOREINFO is not of this memory")
        return root

    def _find_pae_root(self) -> int:
        """Return the physical address of a PAE kernel's page directory pointers, trying each memory split (VMSPLIT)."""
        symbol = self.info.symbol("swapper_pg_dir")
        for page_offset in _PAGE_OFFSETS_32:
            self._root = symbol - page_offset
            try:
                if 0 <= self._root < self._memory_end and self.translate(symbol).start == self._root:
                    return self._root
            except FormatError:
                continue
        raise FormatError("the i386 kernel's page tables are not where any memory split would have them")

    def _table(self, address: int) -> tuple[int, ...]:
        table = self._tables.get(address)
        if table is None:
            if len(self._tables) >= _MOST_TABLES:
                self._tables.clear()
            size = min(PAGE_SIZE, PAGE_SIZE - address % PAGE_SIZE)
            table = struct.unpack(f"<{size // 8}Q", self._memory.read(address, size // 8 * 8))
            self._tables[address] = table
        return table

    def translate(self, linear: int) -> Range:
        """Return the physical range from `linear` to the end of the page (4 KiB, 2 MiB or 1 GiB) it lies in.

        FormatError when the address is not mapped.
        """
        table_at = self._root
        for level in range(self._levels - 1, -1, -1):
            shift = PAGE_SHIFT + 9 * level
            table = self._table(table_at)
            index = linear >> shift & (3 if shift == 30 and self.word == 4 else 511)
            entry = table[index] & ~self._encryption if index < len(table) else 0
            if not entry & _PRESENT:
                raise FormatError(f"kernel address {linear:#x} is not mapped (level {level + 1} entry is empty)")
            if level == 0 or (level <= 2 and entry & _LARGE and not (level == 2 and self.word == 4)):
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
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_u64(self, linear: int) -> int:
        """Return the little-endian u64 at the kernel's linear address `linear`."""
        return int.from_bytes(self.read(linear, 8), "little")

    def read_word(self, linear: int) -> int:
        """Return the unsigned long at the kernel's linear address `linear`."""
        return int.from_bytes(self.read(linear, self.word), "little")

    def page_structs(self) -> Iterator[PageStructs]:
        """Yield the kernel's arrays of struct pages in ascending order of frames."""
        if "SYMBOL(mem_section)" not in self.info.entries:
            # FLATMEM: one array, and `mem_map` points to it.
            yield PageStructs(0, self._flat_frames(), self.read_word(self.info.symbol("mem_map")))
            return
        stride = self.info.size("page")
        pages_per_section = 1 << (self._section_bits() - PAGE_SHIFT)
        for number, coded in self._sections(pages_per_section):
            if coded & _SECTION_HAS_MAP:
                first = number * pages_per_section
                # The low bits are flags; the rest is the array's address less first * stride (sparse_encode_mem_map).
                linear = (coded & ~_SECTION_FLAGS) + first * stride
                yield PageStructs(first, pages_per_section, linear % (1 << self.word * 8))

    def _flat_frames(self) -> int:
        """Return the number of frames in a flat memory map, which ends below firmware at high addresses."""
        frames = self._memory_end >> PAGE_SHIFT
        if "SYMBOL(contig_page_data)" not in self.info.entries:
            return frames
        node = self.info.symbol("contig_page_data")
        start, spanned = (
            self.read_word(node + self.info.offset(f"pglist_data.{name}"))
            for name in ("node_start_pfn", "node_spanned_pages")
        )
        return min(frames, start + spanned)

    def _section_bits(self) -> int:
        bits = self.info.number("SECTION_SIZE_BITS")
        if not _LEAST_SECTION_BITS <= bits <= _MOST_SECTION_BITS:
            raise FormatError(f"VMCOREINFO: NUMBER(SECTION_SIZE_BITS)={bits} is impossible")
        return bits

    def _sections(self, pages_per_section: int) -> Iterator[tuple[int, int]]:
        """Yield (number, section_mem_map) of each section that may exist.

        VMCOREINFO gives the value of `mem_section`: an array of pointers to pages full of sections
        (SPARSEMEM_EXTREME), or the sections themselves when there are as many as physical addresses allow.
        """
        info = self.info
        size = info.size("mem_section")
        if not self.word <= size <= _LARGEST_SECTION:
            raise FormatError(f"VMCOREINFO: SIZE(mem_section)={size} is impossible")
        wanted = align_up(self._memory_end >> PAGE_SHIFT, pages_per_section) // pages_per_section
        length, address_bits = info.length("mem_section"), info.number("MAX_PHYSMEM_BITS")
        if not self._section_bits() <= address_bits <= self.word * 8 + 4:
            raise FormatError(f"VMCOREINFO: NUMBER(MAX_PHYSMEM_BITS)={address_bits} is impossible")
        if length == 1 << (address_bits - self._section_bits()):
            yield from self._decode(0, info.symbol("mem_section"), min(length, wanted))
            return
        per_root = PAGE_SIZE // size
        length = min(length, -(-wanted // per_root))
        pointers = self.read(info.symbol("mem_section"), length * self.word)
        for index in range(length):
            root = int.from_bytes(pointers[index * self.word : (index + 1) * self.word], "little")
            if root:
                yield from self._decode(index * per_root, root, per_root)

    def _decode(self, first: int, linear: int, count: int) -> Iterator[tuple[int, int]]:
        size = self.info.size("mem_section")
        at = self.info.offset("mem_section.section_mem_map")
        if at + self.word > size:
            raise FormatError(f"VMCOREINFO: OFFSET(mem_section.section_mem_map)={at} lies outside the struct")
        at_once = PAGE_SIZE // size
        for begin in range(0, count, at_once):
            number = min(at_once, count - begin)
            sections = self.read(linear + begin * size, number * size)
            for i in range(number):
                coded = sections[i * size + at : i * size + at + self.word]
                yield first + begin + i, int.from_bytes(coded, "little")
