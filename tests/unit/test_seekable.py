from __future__ import annotations

import shutil
import struct
import subprocess
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import damaged, survives

from kjump import _core
from kjump.errors import FormatError
from kjump.formats.seekable import FOOTER_SIZE, Frame, SeekTable, table_length, walk

entry_lists = st.lists(
    st.tuples(st.integers(1, 2**32 - 1), st.integers(0, 2**30), st.integers(0, 2**32 - 1)), max_size=20
)
TWO = SeekTable(struct.pack("<6I", 100, 1000, 7, 50, 600, 8))


def table_of(entries: list[tuple[int, int, int]]) -> SeekTable:
    return SeekTable(b"".join(struct.pack("<3I", *entry) for entry in entries))


@given(entry_lists)
def test_what_is_written_is_read_back(entries: list[tuple[int, int, int]]) -> None:
    table = table_of(entries)
    data = table.encode()
    assert len(data) == table.encoded_length == table_length(data[-FOOTER_SIZE:])
    assert SeekTable.decode(data) == table
    assert [(f.compressed_size, f.size, f.checksum) for f in table] == entries
    assert len(table) == len(entries)
    assert table.stream_length == sum(entry[1] for entry in entries)


def test_layout() -> None:
    assert TWO.encode() == (
        struct.pack("<2I", 0x184D2A5E, 33) + TWO.entries + b"\2\0\0\0" + b"\x80" + struct.pack("<I", 0x8F92EAB1)
    )
    assert list(TWO) == [Frame(0, 100, 0, 1000, 7), Frame(100, 50, 1000, 600, 8)]
    assert (TWO.compressed_length, TWO.stream_length) == (150, 1600)


@given(damaged(TWO.encode()))
def test_damage_is_refused_or_harmless(data: bytes) -> None:
    survives(SeekTable.decode, data)


@pytest.mark.parametrize(
    ("at", "byte", "text"),
    [
        (0, 0, "header is damaged"),
        (4, 32, "header is damaged"),
        (-1, 0, "no seek table here"),
        (-5, 0, "no checksums"),
        (-5, 0x84, "features that are not known"),
        (-9, 3, "says it has 53 bytes, not 41"),
        (-6, 0xFF, "cannot have 4278190082 frames"),
        (8, 0, "frame 0 of the seek table has impossible sizes: 0 and 1000"),
        (15, 0x80, "frame 0 of the seek table has impossible sizes"),
    ],
)
def test_what_is_wrong(at: int, byte: int, text: str) -> None:
    data = bytearray(TWO.encode())
    data[at] = byte
    with pytest.raises(FormatError, match=text):
        SeekTable.decode(data)


def test_unused_bits_are_passed_over() -> None:
    data = bytearray(TWO.encode())
    data[-5] |= 3
    assert SeekTable.decode(data) == TWO


def test_sizes() -> None:
    with pytest.raises(FormatError, match="cut off"):
        SeekTable.decode(b"abc")
    with pytest.raises(FormatError, match="has 9 bytes, not 4"):
        table_length(b"abcd")
    with pytest.raises(FormatError, match="not a multiple of 12"):
        SeekTable(b"abc").encode()


@pytest.mark.parametrize("sizes", [(1, 300, 70_000, 300_000), (255, 256, 0), (5,), ()])
def test_frames_are_found_without_a_table(sizes: tuple[int, ...]) -> None:
    contents = [bytes(range(256)) * (size // 256) + bytes(size % 256) for size in sizes]
    frames = [_core.compress_bytes(content) for content in contents]
    data = b"".join(frames)
    offsets = [0, *accumulate(map(len, frames))]
    for cut in {*offsets, *(at - 1 for at in offsets), *(at + 5 for at in offsets)} & {*range(len(data) + 1)}:
        found = list(walk(lambda at, length, cut=cut: data[at : min(cut, at + length)], cut))  # type: ignore[misc]
        assert len(found) == sum(end <= cut for end in offsets[1:])
        for frame, content in zip(found, contents, strict=False):
            part = data[frame.compressed_offset :][: frame.compressed_size]
            assert _core.decompress_frame(part, frame.size, frame.checksum) == content


@given(damaged(_core.compress_bytes(bytes(1000)) + TWO.encode()))
def test_any_bytes_can_be_walked(data: bytes) -> None:
    survives(lambda some: list(walk(lambda at, length: some[at : at + length], len(some))), data)


@pytest.mark.skipif(shutil.which("zstd") is None, reason="the zstd program is not installed")
def test_zstd_passes_over_the_table(tmp_path: Path) -> None:
    file = tmp_path / "stream.zst"
    frame = subprocess.run(["zstd", "-c"], input=b"content", capture_output=True, check=True).stdout
    file.write_bytes(frame + table_of([(len(frame), 7, 0)]).encode())
    assert subprocess.run(["zstd", "-dc", file], capture_output=True, check=True).stdout == b"content"
