"""Page classes: how a page's struct page determines its class, and which classes a dump level leaves out.

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

from kjump.errors import FormatError
from kjump.formats.vmcoreinfo import VmcoreInfo
from kjump.memory import PAGE_SIZE

LEVEL_ZERO = 1
LEVEL_CACHE = 2
LEVEL_CACHE_PRIVATE = 4
LEVEL_USER = 8
LEVEL_FREE = 16
LEVEL_MOST = 31

TAIL_OFFSETS = ("page.compound_info", "page.compound_head")
"""Names of the word whose lowest bit is set in tail pages only: the first since Linux 7.1, the other before."""

_NO_TYPE = 1 << 32
"""A page type that no 32-bit field can hold."""
_SMALLEST_STRUCT = 16
_FREE_ORDERS = 21
_HUGETLB_ENTRIES = ("NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)", "NUMBER(PG_hugetlb)", "NUMBER(HUGETLB_PAGE_DTOR)")


class PageClass(IntEnum):
    """The classes of pages that a dump can leave out; the number is the bit in an exclusion mask."""

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
    """The layout of a kernel's struct page; the native core has a struct with the same fields (native.h).

    `stride` is the size of a struct page, `word` of an unsigned long, in bytes. `*_at` are offsets in bytes: `type_at`
    of a page type (4 bytes), `order_at` of a byte, the others of words; `order_at` and `huge_at` are relative to a
    compound page's head and may lie in the next struct page. `*_mask` are bits of `flags`, except `type_mask` (the bits
    of the type field that hold the type), `huge_mask` and `tail_mask` (bits of their own words; those of the latter are
    set in tail pages only). `buddy` to `hugetlb` are page types; one that the kernel does not have is larger than 32
    bits. `huge_value` is the value of the word at `huge_at` in a page of hugetlbfs. Orders of free blocks are below
    `free_orders`.
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
    free_orders: int

    @classmethod
    def of(cls, info: VmcoreInfo, word: int = 8) -> PageFields:
        """Read the fields from VMCOREINFO; FormatError, which names the entry, when one is missing or impossible.

        Entries that only some classes need may be missing: `doubts` says which classes must be kept then.
        """
        stride = info.size("page")
        if not _SMALLEST_STRUCT <= stride <= PAGE_SIZE:
            raise FormatError(f"VMCOREINFO: SIZE(page)={stride} is impossible")
        at = _Offsets(info, stride, word)
        types = {name: _type(info, name) for name in ("BUDDY", "SLAB", "OFFLINE", "UNACCEPTED", "HUGETLB")}
        # Since 6.12 (4ffca5a96678) the type is the field's high byte; before, a type had all bits set but one.
        high_byte = all(value == _NO_TYPE or value & 0xFFFFFF == 0 for value in types.values())
        head_mask = info.get_number("PG_head_mask", 0) & (1 << word * 8) - 1
        huge_at, huge_mask, huge_value = _hugetlb(info, at) if head_mask else (0, 0, 0)
        tail_at = at.newest(TAIL_OFFSETS)
        swapcache, swapbacked = (_flag(info, name, word) for name in ("PG_swapcache", "PG_swapbacked"))
        return cls(
            stride=stride,
            word=word,
            flags_at=at.of("page.flags", word),
            mapping_at=at.of("page.mapping", word),
            type_at=at.of("page._mapcount", 4),
            private_at=at.of("page.private", word),
            order_at=_order_at(info, at),
            head_mask=head_mask,
            lru_mask=_flag(info, "PG_lru", word),
            private_mask=_flag(info, "PG_private", word),
            # PG_swapcache shares its bit with another flag, and is valid only with PG_swapbacked.
            swap_mask=swapcache | swapbacked if swapcache and swapbacked else 0,
            slab_mask=_flag(info, "PG_slab", word),
            poison_mask=_flag(info, "PG_hwpoison", word),
            buddy=types["BUDDY"],
            slab=types["SLAB"],
            offline=types["OFFLINE"],
            unaccepted=types["UNACCEPTED"],
            hugetlb=types["HUGETLB"],
            type_mask=0xFF000000 if high_byte else 0xFFFFFFFF,
            huge_at=huge_at,
            huge_mask=huge_mask,
            huge_value=huge_value,
            tail_at=tail_at or 0,
            tail_mask=0 if tail_at is None else 1,
            free_orders=min(info.get_length("zone.free_area", _FREE_ORDERS), _FREE_ORDERS),
        )

    def pack(self) -> bytes:
        """Return the fields as the native core takes them."""
        return struct.pack(f"={len(self.__dataclass_fields__)}Q", *astuple(self))


class _Offsets:
    """Offsets of members of struct page, each checked to lie within it."""

    def __init__(self, info: VmcoreInfo, stride: int, word: int) -> None:
        self._info, self.stride, self.word = info, stride, word

    def of(self, name: str, size: int) -> int:
        """Return the offset of a member of `size` bytes; FormatError when it is missing, or outside the struct."""
        return self.checked(name, self._info.offset(name), size, self.stride)

    def newest(self, names: tuple[str, ...]) -> int | None:
        """Return the offset of a word by the first of `names` (newest first) in VMCOREINFO; None when none is there."""
        known = next((name for name in names if f"OFFSET({name})" in self._info.entries), None)
        return None if known is None else self.of(known, self.word)

    @staticmethod
    def checked(name: str, at: int, size: int, end: int) -> int:
        """Return the offset `at` of the member `name` if its `size` bytes lie below `end`; FormatError otherwise."""
        if at + size > end:
            raise FormatError(f"VMCOREINFO: OFFSET({name})={at} lies outside the struct")
        return at


@dataclass(frozen=True)
class Doubt:
    """A gap in VMCOREINFO: the mask of page classes that it affects, whether those must be kept whole, and why."""

    classes: int
    keep: bool
    reason: str


_CACHES = 1 << PageClass.CACHE | 1 << PageClass.CACHE_PRIVATE
_USER = 1 << PageClass.USER
_FREE = 1 << PageClass.FREE


def doubts(info: VmcoreInfo) -> list[Doubt]:
    """Return the page classes that cannot be determined because VMCOREINFO lacks an entry (under all of its names).

    Such classes are kept: a page that is kept needlessly costs space, but one that is left out is lost.
    """
    rules = (
        (("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)",), _FREE, True, "free pages are kept"),
        (("NUMBER(PG_lru)",), _CACHES, True, "page cache is kept"),
        (("NUMBER(PG_private)",), _CACHES, True, "page cache is kept"),
        (("NUMBER(PG_swapcache)",), _CACHES, False, "pages in the swap cache that are on no LRU list are kept"),
        (("NUMBER(PG_swapbacked)",), _CACHES, False, "pages in the swap cache that are on no LRU list are kept"),
        (tuple(f"OFFSET({name})" for name in TAIL_OFFSETS), _USER, True, "user pages are kept"),
        (("NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)", "NUMBER(PG_slab)"), _USER, True, "user pages are kept"),
        (("NUMBER(PG_head_mask)",), _CACHES | _USER, False, "of compound pages only the first is left out"),
        (_HUGETLB_ENTRIES, _USER, False, "pages of hugetlbfs are kept"),
    )
    return [
        Doubt(classes, keep, f"VMCOREINFO has {_neither(entries)}: {what}")
        for entries, classes, keep, what in rules
        if not any(entry in info.entries for entry in entries)
    ]


def _neither(entries: tuple[str, ...]) -> str:
    return f"no {entries[0]}" if len(entries) == 1 else f"neither {' nor '.join(entries)}"


def _flag(info: VmcoreInfo, name: str, word: int) -> int:
    """Return the mask of a page flag, 0 when VMCOREINFO lacks it; FormatError when the bit exceeds a word."""
    bit = info.get_number(name, None)
    if bit is None:
        return 0
    if not 0 <= bit < word * 8:
        raise FormatError(f"VMCOREINFO: NUMBER({name})={bit} is impossible")
    return 1 << bit


def _type(info: VmcoreInfo, name: str) -> int:
    value = info.get_number(f"PAGE_{name}_MAPCOUNT_VALUE", None)
    return _NO_TYPE if value is None else value & 0xFFFFFFFF


def _order_at(info: VmcoreInfo, at: _Offsets) -> int:
    """Return the offset of a compound page's order: by name, or the low byte of the second page's flags (6.6)."""
    folio = info.get_offset("folio._folio_order", None)
    if folio is not None:
        return at.checked("folio._folio_order", folio, 1, 2 * at.stride)
    name = "page.compound_order" if "OFFSET(page.compound_order)" in info.entries else "page.flags"
    return at.stride + at.of(name, 1)


def _hugetlb(info: VmcoreInfo, at: _Offsets) -> tuple[int, int, int]:
    """Return the offset, mask and value of the word that marks a compound page of hugetlbfs.

    Since 6.10 the mark is a page type, and these are not needed; in 6.6 it was a flag, before that a destructor.
    """
    if info.get_number("PAGE_HUGETLB_MAPCOUNT_VALUE", None) is not None:
        return 0, 0, 0
    if flag := _flag(info, "PG_hugetlb", at.word):
        return at.stride + at.of("page.flags", at.word), flag, flag
    destructor = info.get_number("HUGETLB_PAGE_DTOR", None)
    if destructor is None:
        return 0, 0, 0
    if (where := info.get_offset("folio._folio_dtor", None)) is not None:
        return at.checked("folio._folio_dtor", where, at.word, 2 * at.stride), 0xFF, destructor & 0xFF
    if "OFFSET(page.compound_dtor)" not in info.entries:
        return 0, 0, 0
    return at.stride + at.of("page.compound_dtor", at.word), 0xFF, destructor & 0xFF
