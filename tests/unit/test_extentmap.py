"""The extent map of a file target, and what FIEMAP says."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import damaged, survives

from kjump.errors import FormatError, TargetError
from kjump.formats import extentmap, fiemap
from kjump.formats.extentmap import BLOCK
from kjump.formats.record import Record
from kjump.ranges import Range
from kjump.target.device import Place
from kjump.target.file import join

COOKIE = bytes(range(16))
SAMPLE = (Range(40 * BLOCK, 50 * BLOCK), Range(0, BLOCK), Range(50 * BLOCK, 51 * BLOCK))


@st.composite
def extent_lists(draw: st.DrawFn) -> tuple[Range, ...]:
    """Extents that share nothing, in any order, the first large enough."""
    at, found = 0, []
    for gap, size in draw(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 1000)), min_size=1, max_size=600)):
        found.append(Range.of_size((at + gap) * BLOCK, size * BLOCK))
        at += gap + size
    first = Range.of_size(at * BLOCK, 10 * BLOCK)
    return (first, *draw(st.permutations(found)))


@given(extent_lists())
def test_there_and_back(extents: tuple[Range, ...]) -> None:
    data = extentmap.pack(extents, COOKIE)
    assert len(data) == extentmap.length_for(len(extents)) and len(data) % BLOCK == 0
    assert extentmap.unpack(data, COOKIE) == extents


def test_a_map_of_another_arming() -> None:
    with pytest.raises(FormatError, match="not the one"):
        extentmap.unpack(extentmap.pack(SAMPLE, COOKIE), bytes(16))


@given(damaged(extentmap.pack(SAMPLE, COOKIE)))
def test_damage(data: bytes) -> None:
    survives(lambda changed: extentmap.unpack(changed, COOKIE), data)


@given(st.integers(0, 8 * BLOCK - 1))
def test_every_flipped_bit_is_seen(at: int) -> None:
    data = bytearray(extentmap.pack(SAMPLE, COOKIE))
    data[at // 8] ^= 1 << at % 8
    with pytest.raises(FormatError):
        extentmap.unpack(bytes(data), COOKIE)


@pytest.mark.parametrize(
    ("extents", "words"),
    [
        ((), "1 to 4096 extents"),
        ((Range(0, BLOCK),) * 5000, "1 to 4096 extents"),
        ((Range(0, BLOCK),), "does not hold superblock and extent map"),
        ((Range(0, 9 * BLOCK), Range(8 * BLOCK, 10 * BLOCK)), "share a block"),
        ((Range(512, 9 * BLOCK),), "whole blocks"),
        ((Range(0, 9 * BLOCK), Range(10 * BLOCK, 10 * BLOCK)), "whole blocks"),
    ],
)
def test_extents_that_cannot_be(extents: tuple[Range, ...], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        extentmap.pack(extents, COOKIE)


def fill(argument: bytearray, extents: list[tuple[int, int, int, int]]) -> None:
    """Answer as the kernel does."""
    struct.pack_into("=I", argument, 20, len(extents))
    for i, (logical, physical, length, flags) in enumerate(extents):
        struct.pack_into("=QQQQQI", argument, 32 + 56 * i, logical, physical, length, 0, 0, flags)


def mapped(*extents: tuple[int, int, int, int]) -> list[fiemap.MappedExtent]:
    argument = fiemap.request(0, 8)
    assert struct.unpack_from("=QQIII", argument) == (0, 2**64 - 1, 1, 0, 8)
    fill(argument, [(a * BLOCK, b * BLOCK, c * BLOCK, d) for a, b, c, d in extents])
    return fiemap.answer(argument)


def test_extents_are_joined_and_cut_to_the_file() -> None:
    found = mapped((0, 100, 4, 0), (4, 104, 2, fiemap.MERGED), (6, 50, 10, fiemap.LAST))
    assert found[-1].last and not found[0].last
    assert join(found, 8 * BLOCK, "f") == (Range(100 * BLOCK, 106 * BLOCK), Range(50 * BLOCK, 52 * BLOCK))
    assert join(found, 6 * BLOCK, "f") == (Range(100 * BLOCK, 106 * BLOCK),)


@pytest.mark.parametrize(
    ("extents", "words"),
    [
        ([], "a hole at byte 0"),
        ([(1, 100, 8, 1)], "a hole at byte 0"),
        ([(0, 100, 2, 0), (3, 103, 8, 1)], "a hole at byte 8192"),
        ([(0, 100, 2, 1)], "a hole at byte 8192"),
        ([(0, 100, 8, 0x801)], "f is unwritten at byte 0"),
        ([(0, 100, 8, 0x2001)], "shared with another file"),
        ([(0, 100, 8, 0x88)], "encoded, encrypted"),
        ([(0, 100, 8, 0x80000)], "marked 0x80000, which kjump does not know"),
    ],
)
def test_files_that_cannot_be_targets(extents: list[tuple[int, int, int, int]], words: str) -> None:
    with pytest.raises(TargetError, match=words):
        join(mapped(*extents), 4 * BLOCK, "f")


def test_attributes() -> None:
    assert fiemap.attributes_against(0x80000) == ""  # made of extents, as any file of ext4
    assert fiemap.attributes_against(0x10 | 0x800) == "immutable, encrypted"


def test_a_place_has_no_more_extents_than_a_map() -> None:
    def place(count: int) -> Place:
        pairs = [[2 * i * 4096, (2 * i + 1) * 4096] for i in range(count)]
        return Place.from_json(Record({"device": "/dev/sda2", "extents": pairs}, "the target"))

    assert len(place(extentmap.MAX_EXTENTS).extents) == extentmap.MAX_EXTENTS
    with pytest.raises(FormatError, match="extents has 4097 items"):
        place(extentmap.MAX_EXTENTS + 1)
