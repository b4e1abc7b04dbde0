"""Ranges against a brute-force bitmap: a plain set of the integers below LIMIT."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.ranges import Range, RangeSet, align_down, align_up

LIMIT = 48
values = st.integers(0, LIMIT)
ranges = st.tuples(values, values).map(lambda ends: Range(min(ends), max(ends)))
lists = st.lists(ranges, max_size=8)
sets = lists.map(RangeSet)
alignments = st.sampled_from([1, 2, 3, 4, 8, 16])


def bits(item: Range | RangeSet) -> set[int]:
    return {value for value in range(-2, LIMIT + 20) if value in item}


def assert_normal(item: RangeSet) -> None:
    found = list(item)
    assert all(r.size for r in found)
    assert all(left.end < right.start for left, right in pairwise(found))


@given(st.integers(-100, 100), st.integers(1, 20))
def test_alignment(value: int, alignment: int) -> None:
    assert align_up(value, alignment) == min(x for x in range(value, value + 20) if x % alignment == 0)
    assert align_down(value, alignment) == max(x for x in range(value - 20, value + 1) if x % alignment == 0)


@given(ranges, ranges)
def test_two_ranges(left: Range, right: Range) -> None:
    assert left.size == len(bits(left))
    assert left.overlaps(right) == bool(bits(left) & bits(right))
    assert bits(left.intersection(right)) == bits(left) & bits(right)
    if right.size:
        assert left.covers(right) == (bits(right) <= bits(left))


@given(ranges, alignments)
def test_aligned_range(item: Range, alignment: int) -> None:
    blocks = [set(range(at, at + alignment)) for at in range(0, LIMIT + alignment, alignment)]
    inside = [block for block in blocks if block <= bits(item)]
    outside = [block for block in blocks if block & bits(item)]
    assert bits(item.aligned_inside(alignment)) == set().union(*inside)
    assert bits(item) <= bits(item.aligned_outside(alignment))
    if item.size:
        assert bits(item.aligned_outside(alignment)) == set().union(*outside)


def test_a_range_cannot_end_before_it_starts() -> None:
    with pytest.raises(ValueError, match="before it starts"):
        Range(2, 1)


def test_a_range_is_printed_as_the_kernel_does() -> None:
    assert str(Range(0x1000, 0x2000)) == "[0x1000-0x1fff]"
    assert str(Range(0x1000, 0x1000)) == "[0x1000, empty]"


@given(lists)
def test_union_of_a_list(items: list[Range]) -> None:
    union = RangeSet(items)
    assert_normal(union)
    assert bits(union) == set().union(*map(bits, items))
    assert union.size == len(bits(union))


@given(sets, st.lists(values, max_size=6))
def test_pieces_in_order_are_joined(item: RangeSet, cuts: list[int]) -> None:
    pieces = []
    for whole in item:
        ends = sorted({whole.start, whole.end, *(cut for cut in cuts if cut in whole)})
        pieces += [(start, end - start) for start, end in pairwise(ends)]
    assert RangeSet.joined(pieces) == item


@given(sets, sets)
def test_set_operations(left: RangeSet, right: RangeSet) -> None:
    for result, expected in (
        (left | right, bits(left) | bits(right)),
        (left & right, bits(left) & bits(right)),
        (left - right, bits(left) - bits(right)),
    ):
        assert_normal(result)
        assert bits(result) == expected
    assert (left == right) == (bits(left) == bits(right))
    if left == right:
        assert hash(left) == hash(right)


@given(sets, ranges)
def test_within(item: RangeSet, bounds: Range) -> None:
    found = list(item.within(bounds))
    assert all(part.size for part in found)
    assert RangeSet(found) == item & RangeSet([bounds])
    assert found == sorted(found)


@given(sets, ranges)
def test_covers(item: RangeSet, wanted: Range) -> None:
    assert item.covers(wanted) == (bits(wanted) <= bits(item))


@given(sets, st.integers(-1, LIMIT + 1))
def test_containing(item: RangeSet, value: int) -> None:
    holders = [r for r in item if value in r]
    assert item.containing(value) == (holders[0] if holders else None)


@given(sets, alignments)
def test_aligned_inside(item: RangeSet, alignment: int) -> None:
    aligned = item.aligned_inside(alignment)
    assert_normal(aligned)
    blocks = [set(range(at, at + alignment)) for at in range(0, LIMIT + alignment, alignment)]
    assert bits(aligned) == set().union(*(block for block in blocks if block <= bits(item)))


@given(sets, st.integers(1, 20), alignments)
def test_fits(item: RangeSet, size: int, alignment: int) -> None:
    starts = [at for at in range(0, LIMIT, alignment) if set(range(at, at + size)) <= bits(item)]
    highest, lowest = item.highest_fit(size, alignment), item.lowest_fit(size, alignment)
    assert highest == (Range.of_size(max(starts), size) if starts else None)
    assert lowest == (Range.of_size(min(starts), size) if starts else None)


def test_subtraction_of_large_sets_is_quick() -> None:
    left = RangeSet(Range.of_size(at, 2) for at in range(0, 200_000, 4))
    right = RangeSet(Range.of_size(at, 1) for at in range(0, 200_000, 4))
    assert (left - right).size == 50_000
