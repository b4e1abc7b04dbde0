"""What a save takes of the second kernel's memory when the first kernel's is in small pieces."""

import os
import tracemalloc
from types import SimpleNamespace

import pytest
from examples import FACTS
from hypothesis import given
from hypothesis import strategies as st

from kjump.dump import bitmaps
from kjump.image import headers, save
from kjump.kexec.kimage import Shadow, ShadowRun
from kjump.memory import PAGE_SIZE, FileMemory, FilePiece
from kjump.ranges import Range, RangeSet

BYTES_PER_RUN = 64
"""As kjump.image.needs reckons, and docs/safety.md says."""
FIXED = 4 << 20


@pytest.mark.parametrize("run", [8, 16])
def test_a_run_of_pages_takes_no_object(run: int) -> None:
    """Seen at 10.5 million runs of 16 pages (1.25 TiB): 405 MiB; with objects it was 470 bytes a run."""
    frames = 1 << 20
    bits = bytearray((b"\xff" * (run // 8) + bytes(run // 8)) * (frames // (2 * run)))
    shadow = Shadow(ShadowRun(0x2000 + i, 0x80000 + 2 * i + 1, 1) for i in range(1000))
    fd = os.open("/dev/zero", os.O_RDONLY)
    parked = SimpleNamespace(
        raw=FileMemory(fd, [FilePiece(0, frames * PAGE_SIZE, 0)]), shadow=shadow, vmcoreinfo_note=b""
    )
    tracemalloc.start()
    try:
        in_use = bitmaps.runs(bits, frames)
        kept = headers.frames_to_keep(in_use, shadow)
        found = save._describe(parked, kept, kept, FACTS)  # type: ignore[arg-type]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        os.close(fd)
    count = frames // (2 * run)
    assert len(in_use) == count and len(found.spans) >= count
    assert peak <= BYTES_PER_RUN * count + FIXED


def test_a_bitmap_is_made_once() -> None:
    frames = RangeSet([Range(3, 1 << 26), Range((1 << 26) + 5, (1 << 26) + 6)])
    tracemalloc.start()
    bits = bitmaps.bitmap(frames)
    both = bitmaps.intersection(bits, bits)
    known = bitmaps.count(both)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert known == frames.size
    assert peak <= 2 * len(bits) + FIXED // 4


ranges = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40)).map(lambda t: Range.of_size(*t)), max_size=30)


@given(one=ranges, two=ranges, bounds=st.tuples(st.integers(0, 300), st.integers(0, 100)))
def test_sets_are_as_sets_of_integers(one: list[Range], two: list[Range], bounds: tuple[int, int]) -> None:
    def plain(items: list[Range]) -> set[int]:
        return {n for item in items for n in range(item.start, item.end)}

    a, b = RangeSet(one), RangeSet(two)
    for made, wanted in (
        (a | b, plain(one) | plain(two)),
        (a & b, plain(one) & plain(two)),
        (a - b, plain(one) - plain(two)),
    ):
        assert plain([*made]) == wanted and made.size == len(wanted)
        assert made == RangeSet(Range(n, n + 1) for n in wanted)
        assert all(left[1] < right[0] for left, right in zip([*made.pairs()], [*made.pairs()][1:], strict=False))
    window = Range.of_size(*bounds)
    assert plain([*a.within(window)]) == plain(one) & plain([window])
    assert all(part.size for part in a.within(window))


def test_numbers_beyond_64_bits_are_kept_too() -> None:
    end = 1 << 64
    whole = RangeSet([Range(0, 5), Range(end - 4096, end)])
    assert whole.size == 4101 and end - 1 in whole and end not in whole
    assert whole - RangeSet([Range(end - 4096, end)]) == RangeSet([Range(0, 5)])
    assert whole == RangeSet([Range(end - 4096, end), Range(0, 5)]) and hash(whole) == hash(whole | RangeSet())
