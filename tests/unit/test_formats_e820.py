from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import damaged, survives

from kjump.errors import FormatError
from kjump.formats import e820
from kjump.formats.e820 import E820Entry, IomemResource
from kjump.host import procfs
from kjump.ranges import Range, RangeSet

MIB = 1 << 20
KINDS = list(e820.TYPE_NAMES)
IOMEM = """00000000-00000fff : Reserved
00001000-0009fbff : System RAM
00100000-2ffdffff : System RAM
  01000000-01ffffff : Kernel code
  20000000-27ffffff : Crash kernel
    20000000-20000fff : inner
fd000000-fdffffff : PCI Bus 0000:00 : odd
"""


def maps(limit: int = 40) -> st.SearchStrategy[list[E820Entry]]:
    """Memory maps without overlaps: cut [0, limit) and give each piece a type or leave it out."""
    kinds = st.lists(st.sampled_from([None, e820.RAM, e820.RESERVED]), min_size=limit, max_size=limit)
    return kinds.map(
        lambda cells: [E820Entry(Range(i, i + 1), kind) for i, kind in enumerate(cells) if kind is not None]
    )


def as_bitmap(entries: list[E820Entry]) -> dict[int, int]:
    return {at: entry.type for entry in entries for at in range(entry.range.start, entry.range.end)}


@given(st.lists(st.tuples(st.integers(0, 2**63), st.integers(0, 2**63), st.integers(0, 2**32 - 1))))
def test_what_is_packed_is_unpacked(rows: list[tuple[int, int, int]]) -> None:
    entries = [E820Entry(Range.of_size(start, size), kind) for start, size, kind in rows]
    table = e820.pack(entries)
    assert len(table) == 20 * len(rows)
    assert e820.unpack(table) == entries


def test_the_last_address_can_be_named() -> None:
    entry = E820Entry(Range(2**64 - 4096, 2**64), e820.RESERVED)
    assert e820.unpack(e820.pack([entry])) == [entry]


def test_what_does_not_fit() -> None:
    with pytest.raises(FormatError, match="64 bits"):
        e820.pack([E820Entry(Range(0, 2**64 + 1), e820.RAM)])
    with pytest.raises(FormatError, match="32 bits"):
        e820.pack([E820Entry(Range(0, 1), 2**32)])
    with pytest.raises(FormatError, match="not whole entries"):
        e820.unpack(bytes(19))
    with pytest.raises(FormatError, match="makes no sense"):
        e820.unpack(b"\xff" * 20)


def test_firmware_memmap() -> None:
    found = e820.parse_firmware_memmap(
        [
            ("0x100000\n", "0x2ffdffff\n", "System RAM\n"),
            ("0x0\n", "0x9fbff\n", "System RAM\n"),
            ("0xfffc0000\n", "0xffffffff\n", "Reserved\n"),
            ("0x2ffe0000\n", "0x2fffffff\n", "ACPI Tables\n"),
            ("0x1000000000", "0x10ffffffff", "something new"),
        ]
    )
    assert [(e.range.start, e.range.end, e.type) for e in found] == [
        (0, 0x9FC00, e820.RAM),
        (0x100000, 0x2FFE0000, e820.RAM),
        (0x2FFE0000, 0x30000000, e820.ACPI),
        (0xFFFC0000, 0x100000000, e820.RESERVED),
        (0x1000000000, 0x1100000000, e820.RESERVED),
    ]


@pytest.mark.parametrize("row", [("x", "1", "Reserved"), ("2", "0", "Reserved"), ("", "1", "Reserved")])
def test_firmware_memmap_refuses_nonsense(row: tuple[str, str, str]) -> None:
    with pytest.raises(FormatError, match="memory map"):
        e820.parse_firmware_memmap([row])


@pytest.mark.parametrize("kind", KINDS)
def test_type_names_go_both_ways(kind: int) -> None:
    assert e820.type_number(E820Entry(Range(0, 1), kind).type_name) == kind


def test_iomem() -> None:
    found = e820.parse_iomem(IOMEM)
    assert found[1] == IomemResource(Range(0x1000, 0x9FC00), "System RAM", 0)
    assert [(r.name, r.depth) for r in found[3:]] == [
        *(("Kernel code", 1), ("Crash kernel", 1), ("inner", 2), ("PCI Bus 0000:00 : odd", 0))
    ]


ADDED = """00001000-0009fbff : System RAM
00100000-3fffffff : System RAM
  01000000-01ffffff : Kernel code
100000000-27fffffff : virtio0
  100000000-17fffffff : System RAM (virtio_mem)
280000000-2ffffffff : CXL Window 0
  280000000-2bfffffff : System RAM
  2c0000000-2ffffffff : dax0.0
    2c0000000-2ffffffff : System RAM (kmem)
300000000-3ffffffff : System RAMdisk
400000000-4ffffffff : System RAM (
"""


def test_memory_that_was_added_is_ram_at_any_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "_read_text", lambda path, errors="replace": ADDED)
    gib = 1 << 30
    assert procfs.ram() == RangeSet(
        [Range(0x1000, 0x9FC00), Range(MIB, gib), Range(4 * gib, 6 * gib), Range(10 * gib, 12 * gib)]
    )
    assert [r.ram_driver for r in procfs.ram_of_drivers()] == ["virtio_mem", "kmem"]


def test_iomem_read_without_privilege() -> None:
    with pytest.raises(FormatError, match="as root"):
        e820.parse_iomem("00000000-00000000 : Reserved\n  00000000-00000000 : System RAM\n")


def test_iomem_refuses_an_odd_line() -> None:
    with pytest.raises(FormatError, match="cannot understand"):
        e820.parse_iomem("hello\n")


@given(maps(), st.randoms())
def test_sanitize_says_the_same_in_fewer_entries(entries: list[E820Entry], random: object) -> None:
    shuffled = [*entries, E820Entry(Range(7, 7), e820.RAM)]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    clean = e820.sanitize(shuffled)
    assert as_bitmap(clean) == as_bitmap(entries)
    for left, right in pairwise(clean):
        assert left.range.end < right.range.start or (left.range.end == right.range.start and left.type != right.type)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=5))
def test_sanitize_refuses_overlaps(rows: list[tuple[int, int]]) -> None:
    entries = [E820Entry(Range.of_size(start, size), e820.RAM) for start, size in rows]
    if len(as_bitmap(entries)) == sum(size for _, size in rows):
        e820.sanitize(entries)
    else:
        with pytest.raises(FormatError, match="overlap"):
            e820.sanitize(entries)


@given(maps(8), maps(8))
def test_difference_is_none_when_maps_say_the_same(first: list[E820Entry], second: list[E820Entry]) -> None:
    same = as_bitmap(first) == as_bitmap(second)
    assert (e820.difference(first, second) is None) == same


def test_difference_in_words() -> None:
    ram = E820Entry(Range(0x100000, 0x30000000), e820.RAM)
    less = E820Entry(Range(0x100000, 0x20000000), e820.RAM)
    low = E820Entry(Range(0, 0x9FC00), e820.RAM)
    assert e820.difference([low, ram], [low, less]) == (
        "the saved map has System RAM [0x100000-0x2fffffff] where this machine has System RAM [0x100000-0x1fffffff]"
    )
    assert e820.difference([low, ram], [low]) == (
        "this machine has nothing at System RAM [0x100000-0x2fffffff], which the saved map has"
    )
    assert e820.difference([ram], [low, ram]) == (
        "the saved map has nothing at System RAM [0x0-0x9fbff], which this machine has"
    )


@given(damaged(e820.pack([E820Entry(Range(0, 0x9FC00), e820.RAM)] * 3)))
def test_damaged_table(data: bytes) -> None:
    survives(lambda damage: e820.sanitize(e820.unpack(damage)), data)


@given(damaged(IOMEM.encode()))
def test_damaged_iomem(data: bytes) -> None:
    survives(lambda damage: e820.parse_iomem(damage.decode("latin-1")), data)
