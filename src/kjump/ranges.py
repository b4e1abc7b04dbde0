"""Half-open ranges of integers (physical addresses, page frame numbers) and sets of them.

`Range` is one interval `[start, end)`; `RangeSet` a normalised union: sorted, disjoint, not touching. Both
are immutable. They say nothing about units; whoever names a variable does (`*_pfns`: page
frames, else bytes).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import merge


def align_up(value: int, alignment: int) -> int:
    """Return the smallest multiple of `alignment` that is not below `value`."""
    return -(-value // alignment) * alignment


def align_down(value: int, alignment: int) -> int:
    """Return the largest multiple of `alignment` that is not above `value`."""
    return value // alignment * alignment


@dataclass(frozen=True, order=True, slots=True)
class Range:
    """The integers from `start` up to, not including, `end`; empty when they are equal."""

    start: int
    end: int

    def __post_init__(self) -> None:
        """Refuse a range that ends before it starts (ValueError)."""
        if self.end < self.start:
            raise ValueError(f"range ends ({self.end:#x}) before it starts ({self.start:#x})")

    @classmethod
    def of_size(cls, start: int, size: int) -> Range:
        """Return the range of `size` integers from `start`."""
        return cls(start, start + size)

    @property
    def size(self) -> int:
        """How many integers are in the range."""
        return self.end - self.start

    def __contains__(self, value: int) -> bool:
        """Tell whether `value` lies in the range."""
        return self.start <= value < self.end

    def covers(self, other: Range) -> bool:
        """Tell whether all of `other` lies in this range."""
        return self.start <= other.start and other.end <= self.end

    def overlaps(self, other: Range) -> bool:
        """Tell whether the two share at least one integer."""
        return max(self.start, other.start) < min(self.end, other.end)

    def intersection(self, other: Range) -> Range:
        """Return what both share; empty (at the larger start) when they share nothing."""
        start = max(self.start, other.start)
        return Range(start, max(start, min(self.end, other.end)))

    def aligned_inside(self, alignment: int) -> Range:
        """Return the largest part whose two ends are multiples of `alignment`; may be empty."""
        start = align_up(self.start, alignment)
        return Range(start, max(start, align_down(self.end, alignment)))

    def aligned_outside(self, alignment: int) -> Range:
        """Return the smallest range around this one whose two ends are multiples of `alignment`."""
        return Range(align_down(self.start, alignment), align_up(self.end, alignment))

    def __str__(self) -> str:
        """Return the range as the kernel prints resources: both ends included, hexadecimal."""
        return f"[{self.start:#x}-{self.end - 1:#x}]" if self.size else f"[{self.start:#x}, empty]"


_Numbers = Sequence[int]
_NO_HOLE = (None, None)


def _merged(pairs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Join what touches or overlaps of (start, end), which come by ascending start; empty ones are left out."""
    begun = until = 0
    for start, end in pairs:
        if begun == until:
            begun, until = start, end
        elif start > until:
            yield begun, until
            begun, until = start, end
        elif end > until:
            until = end
    if begun != until:
        yield begun, until


def _stored(pairs: Iterable[tuple[int, int]]) -> tuple[_Numbers, _Numbers]:
    """Return starts and ends of ascending `pairs`, eight bytes each; as a list when one is beyond 64 bits."""
    starts: array[int] | list[int] = array("Q")
    ends: array[int] | list[int] = array("Q")
    for start, end in _merged(pairs):
        try:
            starts.append(start)
            ends.append(end)
        except OverflowError:
            starts, ends = [*starts[: len(ends)], start], [*ends, end]
    return starts, ends


class RangeSet:
    """An immutable set of integers kept as sorted, disjoint, non-touching ranges, of 16 bytes each.

    The memory of a large machine is in millions of them: objects are made for those that somebody looks at.
    """

    __slots__ = ("_ends", "_starts")

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        """Build the union of `ranges`, which may come in any order, overlap, touch or be empty."""
        self._starts, self._ends = _stored(sorted((r.start, r.end) for r in ranges if r.end != r.start))

    @classmethod
    def ascending(cls, pairs: Iterable[tuple[int, int]]) -> RangeSet:
        """Return the union of (start, end), by ascending start, none of which ends before it starts.

        Unlike ranges they need not all be there at a time.
        """
        made = cls.__new__(cls)
        made._starts, made._ends = _stored(pair for pair in pairs if pair[0] != pair[1])
        return made

    @classmethod
    def joined(cls, pieces: Iterable[tuple[int, int]]) -> RangeSet:
        """Return the union of (start, size), by ascending start."""
        return cls.ascending((start, start + size) for start, size in pieces)

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Go through the ranges in ascending order, as (start, end): quicker than as ranges."""
        return zip(self._starts, self._ends, strict=True)

    def __iter__(self) -> Iterator[Range]:
        """Go through the ranges in ascending order."""
        return map(Range, self._starts, self._ends)

    def __len__(self) -> int:
        """Return how many ranges there are (not how many integers: see `size`)."""
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        """Two sets are equal when they hold the same integers."""
        return isinstance(other, RangeSet) and self._starts == other._starts and self._ends == other._ends

    def __hash__(self) -> int:
        """Hash by content."""
        return hash((*self._starts, *self._ends))

    def __repr__(self) -> str:
        """Return the ranges, readable."""
        return f"RangeSet({', '.join(map(str, self))})"

    @property
    def size(self) -> int:
        """How many integers are in the set."""
        return sum(self._ends) - sum(self._starts)

    def __contains__(self, value: int) -> bool:
        """Tell whether `value` is in the set."""
        index = bisect_right(self._starts, value) - 1
        return index >= 0 and value < self._ends[index]

    def containing(self, value: int) -> Range | None:
        """Return the range of the set in which `value` lies, or None."""
        index = bisect_right(self._starts, value) - 1
        if index >= 0 and value < self._ends[index]:
            return Range(self._starts[index], self._ends[index])
        return None

    def covers(self, other: Range) -> bool:
        """Tell whether all of `other` is in the set; an empty range always is."""
        if not other.size:
            return True
        holder = self.containing(other.start)
        return holder is not None and holder.covers(other)

    def within(self, bounds: Range) -> Iterator[Range]:
        """Go through what the set has in common with `bounds`, in ascending order."""
        if bounds.start == bounds.end:
            return
        for index in range(bisect_right(self._ends, bounds.start), bisect_left(self._starts, bounds.end)):
            yield Range(max(self._starts[index], bounds.start), min(self._ends[index], bounds.end))

    def __or__(self, other: RangeSet) -> RangeSet:
        """Return the union."""
        return RangeSet.ascending(merge(self.pairs(), other.pairs()))

    def __and__(self, other: RangeSet) -> RangeSet:
        """Return the intersection."""
        few, many = sorted((self, other), key=len)
        return RangeSet.ascending((part.start, part.end) for item in few for part in many.within(item))

    def __sub__(self, other: RangeSet) -> RangeSet:
        """Return what is in this set and not in the other."""
        return RangeSet.ascending(self._without(other))

    def _without(self, other: RangeSet) -> Iterator[tuple[int, int]]:
        """Go through what is left without `other`, as (start, end), which may be empty."""
        holes = other.pairs()
        hole_start, hole_end = next(holes, _NO_HOLE)
        for start, end in self.pairs():
            at = start
            while hole_end is not None and hole_end <= at:
                hole_start, hole_end = next(holes, _NO_HOLE)
            while hole_start is not None and hole_end is not None and hole_start < end:
                if hole_start > at:
                    yield at, hole_start
                at = hole_end
                if hole_end > end:
                    break  # it reaches into the next one
                hole_start, hole_end = next(holes, _NO_HOLE)
            if at < end:
                yield at, end

    def aligned_inside(self, alignment: int) -> RangeSet:
        """Return, of each range, the part whose ends are multiples of `alignment`."""
        inside = (Range(start, end).aligned_inside(alignment) for start, end in self.pairs())
        return RangeSet.ascending((r.start, r.end) for r in inside)

    def highest_fit(self, size: int, alignment: int) -> Range | None:
        """Return the highest range of `size` within one range of the set, its start aligned; or None."""
        for item in map(Range, reversed(self._starts), reversed(self._ends)):
            start = align_down(item.end - size, alignment)
            if start >= item.start and item.size >= size:
                return Range.of_size(start, size)
        return None

    def lowest_fit(self, size: int, alignment: int) -> Range | None:
        """Return the lowest range of `size` within one range of the set, its start aligned; or None."""
        for item in self:
            start = align_up(item.start, alignment)
            if start + size <= item.end:
                return Range.of_size(start, size)
        return None
