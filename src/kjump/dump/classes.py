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
"""Names of the word whose lowest bit only tails of compound pages have: the first since 7.1, the other before."""

_NO_TYPE = 1 << 32
"""A page type that no 32-bit field can hold."""
_SMALLEST_STRUCT = 16
_FREE_ORDERS = 21
_HUGETLB_ENTRIES = ("NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)", "NUMBER(PG_hugetlb)", "NUMBER(HUGETLB_PAGE_DTOR)")


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
    at `huge_at` is in a page of hugetlbfs. Orders of free blocks are below `free_orders`.
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
        """Learn the fields from VMCOREINFO; FormatError names an entry that is missing or impossible.

        Entries that only some classes need may be missing: `doubts` says what is not to be left out then.
        """
        stride = info.size("page")
        if not _SMALLEST_STRUCT <= stride <= PAGE_SIZE:
            raise FormatError(f"VMCOREINFO: SIZE(page)={stride} is impossible")
        at = _Offsets(info, stride, word)
        types = {name: _type(info, name) for name in ("BUDDY", "SLAB", "OFFLINE", "UNACCEPTED", "HUGETLB")}
        # Since 6.12 (4ffca5a96678) the type is the field's high byte; before, all bits but one were set.
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
            # The bit of PG_swapcache means something else on pages without PG_swapbacked.
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
        """Return the offset of the word that has one of `names`, newest first; None when it has none of them."""
        known = next((name for name in names if f"OFFSET({name})" in self._info.entries), None)
        return None if known is None else self.of(known, self.word)

    @staticmethod
    def checked(name: str, at: int, size: int, end: int) -> int:
        """Return `at` if `size` bytes there end before `end`; FormatError otherwise."""
        if at + size > end:
            raise FormatError(f"VMCOREINFO: OFFSET({name})={at} lies outside the struct")
        return at


@dataclass(frozen=True)
class Doubt:
    """What VMCOREINFO does not tell: the mask of classes this affects, whether they are to be kept whole, and why."""

    classes: int
    keep: bool
    reason: str


_CACHES = 1 << PageClass.CACHE | 1 << PageClass.CACHE_PRIVATE
_USER = 1 << PageClass.USER
_FREE = 1 << PageClass.FREE


def doubts(info: VmcoreInfo) -> list[Doubt]:
    """Return for which classes VMCOREINFO lacks an entry, under any of its names, without which they are guesses.

    A page that is kept for nothing costs space, one that is left out is lost.
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
    """Return the mask of a page flag, 0 when the kernel does not tell; FormatError when no word has that bit."""
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
    """Return where the order of a compound page is: by name, or the low byte of the second page's flags (6.6)."""
    folio = info.get_offset("folio._folio_order", None)
    if folio is not None:
        return at.checked("folio._folio_order", folio, 1, 2 * at.stride)
    name = "page.compound_order" if "OFFSET(page.compound_order)" in info.entries else "page.flags"
    return at.stride + at.of(name, 1)


def _hugetlb(info: VmcoreInfo, at: _Offsets) -> tuple[int, int, int]:
    """Return where, under which mask and with which value a compound page of hugetlbfs is marked.

    Since 6.10 it has a page type, and nothing is needed here; in 6.6 it was a flag, before a destructor.
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
