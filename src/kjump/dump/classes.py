"""Page classes: what a struct page says of its page, and which classes a dump level leaves out.

Levels are makedumpfile's: a sum of 1 (pages of zeros), 2 (page cache), 4 (page cache, private or not), 8 (user
pages), 16 (free pages). Pages with a memory error and pages that are logically offline are left out at any
level: reading the first is dangerous, and the others belong to the hypervisor.

Sources: Documentation/admin-guide/kdump/vmcoreinfo.rst for the entries, include/linux/page-flags.h and
mm_types.h for what they mean.
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass
from enum import IntEnum

from kjump.formats.vmcoreinfo import VmcoreInfo

LEVEL_ZERO = 1
LEVEL_CACHE = 2
LEVEL_CACHE_PRIVATE = 4
LEVEL_USER = 8
LEVEL_FREE = 16
LEVEL_MOST = 31

_NO_TYPE = 1 << 32
"""A page type that no 32-bit field can hold."""


class PageClass(IntEnum):
    """The classes of pages a dump can do without; the number is the bit in an exclusion mask."""

    FREE = 0
    CACHE = 1
    CACHE_PRIVATE = 2
    USER = 3
    HWPOISON = 4
    OFFLINE = 5


def exclusion_mask(level: int) -> int:
    """Return the mask of page classes (bit = PageClass) that `level` leaves out."""
    mask = 1 << PageClass.HWPOISON | 1 << PageClass.OFFLINE
    if level & (LEVEL_CACHE | LEVEL_CACHE_PRIVATE):
        mask |= 1 << PageClass.CACHE
    if level & LEVEL_CACHE_PRIVATE:
        mask |= 1 << PageClass.CACHE_PRIVATE
    if level & LEVEL_USER:
        mask |= 1 << PageClass.USER
    if level & LEVEL_FREE:
        mask |= 1 << PageClass.FREE
    return mask


@dataclass(frozen=True)
class PageFields:
    """How a kernel's struct page is made; the native core has a struct with the same fields (native.h).

    `stride` is the size of a struct page, `word` of an unsigned long, in bytes. `*_at` are offsets in bytes: `type_at`
    of a page type (4 bytes), `order_at` of a byte, the others of words; `order_at` and `huge_at` count from a compound
    page's head and may reach into the struct behind it. `*_mask` are bits of `flags`, but for `type_mask` (which bits
    of the field are the type), `huge_mask` and `tail_mask` (of their own words; the latter only tails have).
    `buddy` to `hugetlb` are page types; one that a kernel has not is larger than 32 bits. `huge_value` is what the word
    at `huge_at` is in a page of hugetlbfs.
    """

    stride: int
    word: int
    flags_at: int
    mapping_at: int
    type_at: int
    private_at: int
    order_at: int
    head_mask: int
    lru_mask: int
    private_mask: int
    swap_mask: int
    slab_mask: int
    poison_mask: int
    buddy: int
    slab: int
    offline: int
    unaccepted: int
    hugetlb: int
    type_mask: int
    huge_at: int
    huge_mask: int
    huge_value: int
    tail_at: int
    tail_mask: int

    @classmethod
    def of(cls, info: VmcoreInfo, word: int = 8) -> PageFields:
        """Learn the fields from VMCOREINFO; FormatError names the entry that is missing."""
        stride = info.size("page")
        buddy = info.number("PAGE_BUDDY_MAPCOUNT_VALUE") & 0xFFFFFFFF
        huge_at, huge_mask, huge_value = _hugetlb(info, stride)
        tail_at = info.get_offset("page.compound_head", None)
        return cls(
            stride=stride,
            word=word,
            flags_at=info.offset("page.flags"),
            mapping_at=info.offset("page.mapping"),
            type_at=info.offset("page._mapcount"),
            private_at=info.offset("page.private"),
            order_at=_order_at(info, stride),
            head_mask=info.get_number("PG_head_mask", 0),
            lru_mask=1 << info.number("PG_lru"),
            private_mask=1 << info.number("PG_private"),
            swap_mask=1 << info.number("PG_swapcache") | _flag(info, "PG_swapbacked"),
            slab_mask=_flag(info, "PG_slab"),
            poison_mask=_flag(info, "PG_hwpoison"),
            buddy=buddy,
            slab=_type(info, "SLAB"),
            offline=_type(info, "OFFLINE"),
            unaccepted=_type(info, "UNACCEPTED"),
            hugetlb=_type(info, "HUGETLB"),
            # Since 6.12 (4ffca5a96678) the type is the field's high byte; before, all bits but one were set.
            type_mask=0xFF000000 if buddy & 0xFFFFFF == 0 else 0xFFFFFFFF,
            huge_at=huge_at,
            huge_mask=huge_mask,
            huge_value=huge_value,
            tail_at=tail_at or 0,
            tail_mask=0 if tail_at is None else 1,
        )

    def pack(self) -> bytes:
        """Return the fields as the native core takes them."""
        return struct.pack(f"={len(self.__dataclass_fields__)}Q", *astuple(self))


def _flag(info: VmcoreInfo, name: str) -> int:
    bit = info.get_number(name, None)
    return 0 if bit is None else 1 << bit


def _type(info: VmcoreInfo, name: str) -> int:
    value = info.get_number(f"PAGE_{name}_MAPCOUNT_VALUE", None)
    return _NO_TYPE if value is None else value & 0xFFFFFFFF


def _order_at(info: VmcoreInfo, stride: int) -> int:
    """Return where the order of a compound page is: by name, or the low byte of the second page's flags (6.6)."""
    folio = info.get_offset("folio._folio_order", None)
    if folio is not None:
        return folio
    return stride + info.get_offset("page.compound_order", info.offset("page.flags"))


def _hugetlb(info: VmcoreInfo, stride: int) -> tuple[int, int, int]:
    """Return where, under which mask and with which value a compound page of hugetlbfs is marked.

    Since 6.10 it has a page type, and nothing is needed here; in 6.6 it was a flag, before a destructor.
    """
    if info.get_number("PAGE_HUGETLB_MAPCOUNT_VALUE", None) is not None:
        return 0, 0, 0
    if flag := _flag(info, "PG_hugetlb"):
        return stride + info.offset("page.flags"), flag, flag
    destructor = info.get_number("HUGETLB_PAGE_DTOR", None)
    at = info.get_offset("folio._folio_dtor", None)
    if at is None and (second := info.get_offset("page.compound_dtor", None)) is not None:
        at = stride + second
    return (0, 0, 0) if destructor is None or at is None else (at, 0xFF, destructor)
