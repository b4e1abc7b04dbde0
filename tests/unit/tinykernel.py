"""A kernel small enough to build by hand: page tables, memory map, log and VMCOREINFO in 512 pages."""

from __future__ import annotations

import random
import struct
from pathlib import Path

from kjump.formats import elf, notes
from kjump.memory import PAGE_SIZE

FRAMES = 512
LINEAR = 0xFFFF888000000000
TEXT = 0xFFFFFFFF80000000
STRIDE = 64
ROOT, UPPER, SECTIONS, ROOTS, LOG, MAP = 1, 2, 3, 4, 5, 16
LRU, PRIVATE, SWAPCACHE, SWAPBACKED, HEAD, POISON = (1 << bit for bit in (5, 14, 10, 17, 6, 22))
BUDDY, OFFLINE, SLAB, HUGETLB = 0xF0000000, 0xF1000000, 0xF5000000, 0xF4000000

_TEXT = """OSRELEASE=6.12.0-tiny
PAGESIZE=4096
SYMBOL(init_top_pgt)={root:x}
NUMBER(phys_base)=0
NUMBER(pgtable_l5_enabled)=0
SIZE(page)=64
OFFSET(page.flags)=0
OFFSET(page.mapping)=24
OFFSET(page._mapcount)=48
OFFSET(page.private)=40
OFFSET(page.compound_head)=8
LENGTH(zone.free_area)=11
NUMBER(PG_lru)=5
NUMBER(PG_private)=14
NUMBER(PG_swapcache)=10
NUMBER(PG_swapbacked)=17
NUMBER(PG_hwpoison)=22
NUMBER(PG_head_mask)=64
NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)=-184549376
NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-268435456
NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)=-201326592
NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)=-251658240
CRASHTIME=1700000000
{memory_model}"""

_SPARSE = """SYMBOL(mem_section)={at:x}
LENGTH(mem_section)={length}
SIZE(mem_section)=16
OFFSET(mem_section.section_mem_map)=0
NUMBER(SECTION_SIZE_BITS)=20
NUMBER(MAX_PHYSMEM_BITS)={bits}
"""

_FLAT = """SYMBOL(mem_map)={map:x}
SYMBOL(contig_page_data)={node:x}
OFFSET(pglist_data.node_start_pfn)=0
OFFSET(pglist_data.node_spanned_pages)=8
"""


def linear(frame: int) -> int:
    """Return the kernel's linear address of page `frame`."""
    return LINEAR + frame * PAGE_SIZE


def page_struct(
    flags: int = 0, mapping: int = 0, private: int = 0, kind: int = 0xFFFFFFFF, compound_head: int = 0
) -> bytes:
    """Return a struct page of the tiny kernel; `compound_head` is odd in tails."""
    return struct.pack("<QQQQQQIIQ", flags, compound_head, 0, mapping, 0, private, kind, 1, 0)


def page_structs(seed: int = 1) -> list[bytes]:
    """Return the memory map: all kinds of pages, some of them compound."""
    chance = random.Random(seed)
    found = [page_struct()] * 32
    while len(found) < FRAMES:
        order = chance.choice((0, 0, 0, 1, 2, 3))
        if len(found) % (1 << order) or len(found) + (1 << order) > FRAMES:
            continue
        found += _block(chance, order)
    return found


def _block(chance: random.Random, order: int) -> list[bytes]:
    head = HEAD if order else 0
    kinds = (
        page_struct(private=order, kind=BUDDY),
        page_struct(LRU | head),
        page_struct(LRU | PRIVATE | head),
        page_struct(LRU | head, mapping=LINEAR + 1),
        page_struct(SWAPCACHE | SWAPBACKED | head),
        page_struct(SWAPCACHE | head),
        page_struct(head, mapping=LINEAR + 1, kind=SLAB),
        page_struct(head, kind=HUGETLB),
        page_struct(kind=OFFLINE),
        page_struct(POISON),
        page_struct(head),
    )
    # Tails have other things where single pages have `mapping`, often with the bit set that says anonymous there.
    tail = page_struct(order, mapping=LINEAR + 1, compound_head=LINEAR + 1)
    first = chance.choice(kinds)
    return [first, *[tail if first[0] & HEAD else page_struct()] * ((1 << order) - 1)]


def info(model: str = "sparse") -> str:
    """Return the kernel's VMCOREINFO; `model` is sparse, static or flat."""
    if model == "flat":
        text = _FLAT.format(map=linear(SECTIONS), node=linear(SECTIONS) + 8)
    elif model == "static":
        text = _SPARSE.format(at=linear(SECTIONS), length=4, bits=22)
    else:
        text = _SPARSE.format(at=linear(ROOTS), length=4, bits=30)
    return _TEXT.format(root=TEXT + ROOT * PAGE_SIZE, memory_model=text)


def memory(model: str = "sparse", seed: int = 1) -> bytes:
    """Return the kernel's 512 pages."""
    chance = random.Random(seed)
    pages = bytearray()
    for _ in range(FRAMES):
        kind = chance.randrange(3)
        pages += (bytes(PAGE_SIZE), chance.randbytes(64) * 64, chance.randbytes(PAGE_SIZE))[kind]

    def put(frame: int, data: bytes, at: int = 0) -> None:
        start = frame * PAGE_SIZE + at
        pages[start : start + len(data)] = data

    for frame in (ROOT, UPPER, SECTIONS, ROOTS):
        put(frame, bytes(PAGE_SIZE))
    put(ROOT, struct.pack("<Q", UPPER * PAGE_SIZE | 1), (LINEAR >> 39 & 511) * 8)
    put(UPPER, struct.pack("<Q", 0x81))  # one large page of 1 GiB at physical 0
    if model == "flat":
        put(SECTIONS, struct.pack("<QQQ", linear(MAP), 1, FRAMES - 1))
    else:
        coded = linear(MAP) | 3
        put(SECTIONS, b"".join(struct.pack("<QQ", coded, 0) for _ in range(2)))
        put(ROOTS, struct.pack("<Q", linear(SECTIONS)))
    put(MAP, b"".join(page_structs(seed)))
    return bytes(pages)


def note_bytes(model: str = "sparse") -> bytes:
    """Return the notes of the kernel's vmcore: registers of two CPUs, VMCOREINFO."""
    registers = notes.Note(notes.CORE, notes.NT_PRSTATUS, bytes(336))
    text = notes.Note(notes.VMCOREINFO, 0, info(model).encode())
    return notes.encode([registers, registers, text])


def write_vmcore(path: Path, model: str = "sparse", seed: int = 1) -> bytes:
    """Write the kernel's ELF vmcore, in two pieces with a frame missing between; return its memory."""
    data = memory(model, seed)
    hole = 300 * PAGE_SIZE
    loads = [elf.CoreLoad(0, 0, hole), elf.CoreLoad(hole + PAGE_SIZE, 0, len(data) - hole - PAGE_SIZE)]
    head, _ = elf.core_headers(loads, note_bytes(model))
    path.write_bytes(head + data[:hole] + data[hole + PAGE_SIZE :])
    return data
