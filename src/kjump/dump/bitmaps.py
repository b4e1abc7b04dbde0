"""Bitmaps of page frames: one bit for each frame from frame 0 on, the lowest bit of the lowest byte first."""

from __future__ import annotations

from collections.abc import Iterator

from kjump import _core
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet, align_up

_AT_ONCE = 1 << 16
"""Bytes of a bitmap that are processed at a time: a copy of all takes 32 MiB for 1 TiB of memory, too much in B."""
_ONES = b"\xff" * _AT_ONCE


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
    for at in range(inner.start // 8, inner.end // 8, _AT_ONCE):
        end = min(at + _AT_ONCE, inner.end // 8)
        bits[at:end] = _ONES[: end - at]
    if item.start < inner.start:
        bits[item.start // 8] |= 0xFF << item.start % 8 & 0xFF
    if item.end > inner.end:
        bits[inner.end // 8] |= (1 << item.end - inner.end) - 1


def runs(bits: bytes | bytearray, end: int) -> RangeSet:
    """Return the set bits below `end` of `bits` (one bit a frame, lowest first) as ranges of frames."""
    pieces = range(0, end, 8 * _AT_ONCE)
    return RangeSet.ascending(
        run for at in pieces for run in _core.bitmap_runs(bits, at, min(at + 8 * _AT_ONCE, end), True, 1)
    )


def count(bits: bytes | bytearray) -> int:
    """Return the number of bits of a bitmap that are set."""
    return sum(number.bit_count() for _, number in _words(bits))


def count_between(bits: bytes | bytearray, start: int, end: int) -> int:
    """Return the number of the bits [start, end) that are set."""
    first, last = start // 8, -(-end // 8)
    some = int.from_bytes(bits[first:last], "little") >> start % 8
    return (some & ((1 << end - start) - 1)).bit_count()


def intersection(bits: bytes | bytearray, others: bytes | bytearray) -> bytearray:
    """Return the bits that are set in both bitmaps, with the length of `bits`."""
    both = bytearray(len(bits))
    for (at, one), (_, other) in zip(_words(bits), _words(others), strict=False):
        size = min(_AT_ONCE, len(bits) - at)
        both[at : at + size] = (one & other).to_bytes(_AT_ONCE, "little")[:size]
    return both


def union(bits: bytes | bytearray, others: bytes | bytearray) -> bytearray:
    """Return the bits that are set in either bitmap, with the length of `bits`."""
    either = bytearray(bits)
    for at, number in _words(others):
        part = memoryview(either)[at : at + _AT_ONCE]
        both = int.from_bytes(part, "little") | number
        part[:] = both.to_bytes(_AT_ONCE, "little")[: len(part)]
    return either


def end_of(bits: bytes | bytearray) -> int:
    """Return the number after the last frame that is set; 0 when none is."""
    return max((at * 8 + number.bit_length() for at, number in _words(bits) if number), default=0)


def _words(bits: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Yield a bitmap as (offset in bytes, piece as an integer); one integer of all would take several copies."""
    view = memoryview(bits)
    for at in range(0, len(bits), _AT_ONCE):
        yield at, int.from_bytes(view[at : at + _AT_ONCE], "little")


def to_frames(addresses: RangeSet) -> RangeSet:
    """Return the whole pages inside `addresses` (bytes) as page frame numbers."""
    pairs = addresses.aligned_inside(PAGE_SIZE).pairs()
    return RangeSet.ascending((start // PAGE_SIZE, end // PAGE_SIZE) for start, end in pairs)


def to_addresses(frames: RangeSet) -> RangeSet:
    """Return `frames` (page frame numbers) as physical addresses in bytes."""
    return RangeSet.ascending((start * PAGE_SIZE, end * PAGE_SIZE) for start, end in frames.pairs())
