"""Half-open ranges of integers (physical addresses, page frame numbers) and sets of them.

`Range` is one interval `[start, end)`; `RangeSet` a normalised union: sorted, disjoint, not touching. Both
are immutable. They say nothing about units; whoever names a variable does (`*_pfns`: page
frames, else bytes).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter


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


_START = attrgetter("start")


class RangeSet:
    """An immutable set of integers kept as sorted, disjoint, non-touching ranges."""

    __slots__ = ("_ranges", "_starts")

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        """Build the union of `ranges`, which may come in any order, overlap, touch or be empty."""
        merged: list[Range] = []
        for item in sorted(ranges, key=_START):
            if item.end == item.start:
                continue
            if not merged or item.start > merged[-1].end:
                merged.append(item)
            elif item.end > merged[-1].end:
                merged[-1] = Range(merged[-1].start, item.end)
        self._ranges = tuple(merged)
        self._starts = tuple(r.start for r in merged)

    @classmethod
    def joined(cls, pieces: Iterable[tuple[int, int]]) -> RangeSet:
        """Return the union of (start, size), disjoint and in ascending order: quicker than of as many ranges."""
        joined: list[Range] = []
        start = end = -1
        for at, size in pieces:
            if at != end:
                joined.append(Range(start, end))
                start = at
            end = at + size
        return cls([*joined, Range(start, end)][1:])

    def __iter__(self) -> Iterator[Range]:
        """Go through the ranges in ascending order."""
        return iter(self._ranges)

    def __len__(self) -> int:
        """Return how many ranges there are (not how many integers: see `size`)."""
        return len(self._ranges)

    def __eq__(self, other: object) -> bool:
        """Two sets are equal when they hold the same integers."""
        return isinstance(other, RangeSet) and self._ranges == other._ranges

    def __hash__(self) -> int:
        """Hash by content."""
        return hash(self._ranges)

    def __repr__(self) -> str:
        """Return the ranges, readable."""
        return f"RangeSet({', '.join(map(str, self._ranges))})"

    @property
    def size(self) -> int:
        """How many integers are in the set."""
        return sum(r.size for r in self._ranges)

    def __contains__(self, value: int) -> bool:
        """Tell whether `value` is in the set."""
        return self.containing(value) is not None

    def containing(self, value: int) -> Range | None:
        """Return the range of the set in which `value` lies, or None."""
        index = bisect_right(self._starts, value) - 1
        if index >= 0 and value in self._ranges[index]:
            return self._ranges[index]
        return None

    def covers(self, other: Range) -> bool:
        """Tell whether all of `other` is in the set; an empty range always is."""
        if not other.size:
            return True
        holder = self.containing(other.start)
        return holder is not None and holder.covers(other)

    def within(self, bounds: Range) -> Iterator[Range]:
        """Go through what the set has in common with `bounds`, in ascending order."""
        first = max(0, bisect_right(self._starts, bounds.start) - 1)
        for item in self._ranges[first : bisect_left(self._starts, bounds.end)]:
            part = item.intersection(bounds)
            if part.size:
                yield part

    def __or__(self, other: RangeSet) -> RangeSet:
        """Return the union."""
        return RangeSet((*self._ranges, *other._ranges))

    def __and__(self, other: RangeSet) -> RangeSet:
        """Return the intersection."""
        return RangeSet(part for item in self._ranges for part in other.within(item))

    def __sub__(self, other: RangeSet) -> RangeSet:
        """Return what is in this set and not in the other."""
        left: list[Range] = []
        for item in self._ranges:
            at = item.start
            first = max(0, bisect_right(other._starts, item.start) - 1)
            for index in range(first, bisect_left(other._starts, item.end)):
                hole = other._ranges[index]
                if hole.start > at:
                    left.append(Range(at, hole.start))
                at = max(at, hole.end)
            if at < item.end:
                left.append(Range(at, item.end))
        return RangeSet(left)

    def aligned_inside(self, alignment: int) -> RangeSet:
        """Return, of each range, the part whose ends are multiples of `alignment`."""
        return RangeSet(r.aligned_inside(alignment) for r in self._ranges)

    def highest_fit(self, size: int, alignment: int) -> Range | None:
        """Return the highest range of `size` within one range of the set, its start aligned; or None."""
        for item in reversed(self._ranges):
            start = align_down(item.end - size, alignment)
            if start >= item.start and item.size >= size:
                return Range.of_size(start, size)
        return None

    def lowest_fit(self, size: int, alignment: int) -> Range | None:
        """Return the lowest range of `size` within one range of the set, its start aligned; or None."""
        for item in self._ranges:
            start = align_up(item.start, alignment)
            if start + size <= item.end:
                return Range.of_size(start, size)
        return None
