"""The native core against plain Python, and against the zstd program."""

from __future__ import annotations

import contextlib
import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams import few, needs_zstd, xxh64

from kjump import _core
from kjump.errors import ImageError

# Bitmaps and page classes


def bits_of(bitmap: bytes | bytearray) -> list[int]:
    return [i for i in range(len(bitmap) * 8) if bitmap[i // 8] >> (i % 8) & 1]


def runs_of(bitmap: bytes, start: int, end: int, value: bool, min_gap: int) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for i in range(start, end):
        if bool(bitmap[i // 8] >> (i % 8) & 1) == value:
            if runs and i - runs[-1][1] < max(min_gap, 1):
                runs[-1] = (runs[-1][0], i + 1)
            else:
                runs.append((i, i + 1))
    return runs


bitmaps = st.lists(st.sampled_from([b"\0", b"\xff", b"\0" * 9, b"\xff" * 9, b"\x10", b"\x81", b"\xfe"])).map(b"".join)


@few
@given(bitmaps, st.data(), st.booleans(), st.integers(0, 20))
def test_bitmap_runs(bitmap: bytes, data: st.DataObject, value: bool, min_gap: int) -> None:
    end = data.draw(st.integers(0, len(bitmap) * 8))
    start = data.draw(st.integers(0, end))
    assert _core.bitmap_runs(bitmap, start, end, value, min_gap) == runs_of(bitmap, start, end, value, min_gap)


def test_bitmap_runs_refuses_what_is_not_there() -> None:
    for start, end in [(0, 17), (9, 8), (0, 2**64 - 1)]:
        with pytest.raises(ValueError, match="do not lie in a bitmap of 2 bytes"):
            _core.bitmap_runs(b"ab", start, end)
    with pytest.raises(ValueError, match="negative or too large"):
        _core.bitmap_runs(b"ab", -1, 3)


@given(st.lists(st.sampled_from([bytes(4096), b"\1" + bytes(4095), bytes(4095) + b"\1", bytes(9) + b"x" * 4087])))
def test_zero_pages(pages: list[bytes]) -> None:
    found = _core.zero_pages(b"".join(pages))
    assert len(found) == (len(pages) + 7) // 8
    assert bits_of(found) == [i for i, page in enumerate(pages) if not any(page)]


def test_zero_pages_wants_whole_pages() -> None:
    with pytest.raises(ValueError, match="whole number of pages"):
        _core.zero_pages(bytes(4097))


# Bytes and frames


def test_the_reference_hash() -> None:
    assert xxh64(b"") == 0xEF46DB3751D8E999
    assert xxh64(b"abc") == 0x44BC2CF5AD770999


@given(st.binary(max_size=300), st.integers(-7, 5))
def test_bytes_there_and_back(data: bytes, level: int) -> None:
    frame = _core.compress_bytes(data, level)
    assert _core.decompress_bytes(frame, len(data)) == data
    assert _core.decompress_bytes(frame * 3, 10**6) == data * 3
    checksum = xxh64(data) & 0xFFFFFFFF
    assert _core.decompress_frame(frame, len(data), checksum) == _core.decompress_frame(frame, len(data)) == data
    with pytest.raises(_core.Damaged, match="seek table's"):
        _core.decompress_frame(frame, len(data), checksum ^ 1)
    with pytest.raises(_core.Damaged, match="expected size"):
        _core.decompress_frame(frame, len(data) + 1)
    with pytest.raises(_core.Damaged):
        _core.decompress_frame(frame + frame, len(data))
    if data:
        with pytest.raises(_core.Damaged, match="more than it should"):
            _core.decompress_bytes(frame, len(data) - 1)


@given(st.binary(max_size=200), st.data())
def test_a_damaged_frame_is_never_taken(data: bytes, draw: st.DataObject) -> None:
    frame = bytearray(_core.compress_bytes(data))
    at = draw.draw(st.integers(0, len(frame) - 1))
    frame[at] ^= draw.draw(st.integers(1, 255))
    with contextlib.suppress(_core.Damaged):
        assert _core.decompress_frame(frame, len(data)) == data  # some bits of the header mean nothing
    with pytest.raises(_core.Damaged):
        _core.decompress_frame(frame[:at], len(data))
    with pytest.raises(_core.Damaged):
        _core.decompress_bytes(_core.compress_bytes(data)[:at], 1000)


@given(st.binary(max_size=100))
def test_anything_may_be_called_a_frame(junk: bytes) -> None:
    for call in (_core.decompress_bytes, _core.decompress_frame):
        try:
            call(b"\x28\xb5\x2f\xfd" + junk, 1000)
        except _core.Damaged as error:
            assert isinstance(error, ImageError)


@needs_zstd
def test_decompress_bytes_reads_what_zstd_writes() -> None:
    data = os.urandom(1000) * 300
    packed = subprocess.run(["zstd", "-19", "-c"], input=data, capture_output=True, check=True).stdout
    assert _core.decompress_bytes(packed, len(data)) == data


def test_levels_and_sizes_that_are_not() -> None:
    for level in (-(2**31), 99):
        with pytest.raises(ValueError, match="no compression level"):
            _core.compress_bytes(b"", level)
    with pytest.raises(ValueError, match="larger than any"):
        _core.decompress_frame(b"", 2**40)
    with pytest.raises(ValueError, match="negative or too large"):
        _core.decompress_frame(b"", -1)
    with pytest.raises(_core.Damaged):
        _core.decompress_bytes(b"", 0)
