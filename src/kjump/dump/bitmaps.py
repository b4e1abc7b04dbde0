"""Bitmaps of page frames: one bit a frame, the lowest bit of the lowest byte first, from frame 0 on."""

from __future__ import annotations

from kjump import _core
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet, align_up


def bitmap(frames: RangeSet) -> bytearray:
    """Return `frames` (page frame numbers) as a bitmap, lowest frame first, in whole words of 64 bits."""
    end = align_up(max((r.end for r in frames), default=0), 64)
    bits = bytearray(end // 8)
    for item in frames:
        _set(bits, item)
    return bits


def _set(bits: bytearray, item: Range) -> None:
    inner = item.aligned_inside(8)
    if item.start // 8 == (item.end - 1) // 8:
        bits[item.start // 8] |= ((1 << item.size) - 1) << item.start % 8
        return
    bits[inner.start // 8 : inner.end // 8] = b"\xff" * (inner.size // 8)
    if item.start < inner.start:
        bits[item.start // 8] |= 0xFF << item.start % 8 & 0xFF
    if item.end > inner.end:
        bits[inner.end // 8] |= (1 << item.end - inner.end) - 1


def runs(bits: bytes | bytearray, end: int) -> RangeSet:
    """Return the set bits below `end` of `bits` (one bit a frame, lowest first) as ranges of frames."""
    return RangeSet(Range(a, b) for a, b in _core.bitmap_runs(bits, 0, end, True, 1))


def count(bits: bytes | bytearray) -> int:
    """Return how many bits of a bitmap are set."""
    return int.from_bytes(bits, "little").bit_count()


def count_between(bits: bytes | bytearray, start: int, end: int) -> int:
    """Return how many of the bits [start, end) are set."""
    first, last = start // 8, -(-end // 8)
    some = int.from_bytes(bits[first:last], "little") >> start % 8
    return (some & ((1 << end - start) - 1)).bit_count()


def intersection(bits: bytes | bytearray, others: bytes | bytearray) -> bytearray:
    """Return the bits that are set in both, in as many bytes as `bits` has."""
    both = int.from_bytes(bits, "little") & int.from_bytes(others, "little")
    return bytearray(both.to_bytes(max(len(bits), len(others)), "little")[: len(bits)])


def to_frames(addresses: RangeSet) -> RangeSet:
    """Return the whole pages inside `addresses` (bytes) as page frame numbers."""
    return RangeSet(Range(r.start // PAGE_SIZE, r.end // PAGE_SIZE) for r in addresses.aligned_inside(PAGE_SIZE))


def to_addresses(frames: RangeSet) -> RangeSet:
    """Return `frames` (page frame numbers) as physical addresses in bytes."""
    return RangeSet(Range(r.start * PAGE_SIZE, r.end * PAGE_SIZE) for r in frames)
