"""The native core compresses a source into a stream of frames, and restores from it: held to plain Python."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import subprocess
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams import SLICE, SOURCE, Span, Work, check_image, few, layouts, needs_zstd

from kjump import _core
from kjump.formats.seekable import SeekTable
from kjump.memory import PAGE_SIZE


@few
@given(layouts(len(SOURCE)), st.integers(1, 3), st.sampled_from([1000, 4096, 65536, 1 << 20]), st.sampled_from([0, 77]))
def test_compress_any_layout(
    tmp_path: Path, layout: tuple[bytes, list[Span], int], threads: int, frame_size: int, out_offset: int
) -> None:
    head, spans, length = layout
    work = Work(tmp_path, SOURCE, spans, head, length, frame_size, threads=threads, out_offset=out_offset)
    check_image(work, *work.compress())


@few
@given(st.data(), st.integers(1, 3), st.sampled_from([1000, 65536]), st.sampled_from([0, 4096, 2**64 - 1]))
def test_restore_any_spans(tmp_path: Path, data: st.DataObject, threads: int, frame_size: int, map_gap: int) -> None:
    work = Work(tmp_path, SOURCE, [(0, 0, len(SOURCE))], frame_size=frame_size, threads=threads, map_gap=map_gap)
    _, entries = work.compress()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(SOURCE)), max_size=12)))
    pieces = [(a, b - a) for a, b in pairwise(cuts) if data.draw(st.booleans())]
    expected = bytearray(b"." * 500_000)
    at, spans = 0, []
    for stream, length in data.draw(st.permutations(pieces)):
        spans.append((stream, at, length))
        expected[at : at + length] = SOURCE[stream : stream + length]
        at += length + data.draw(st.sampled_from([0, 1, 5000]))
    destination = tmp_path / "destination"
    destination.write_bytes(b"." * 500_000)
    assert work.restore(entries, sorted(spans), destination) == sum(length for _, length in pieces)
    assert destination.read_bytes() == expected


@pytest.mark.parametrize("length", [0, 1, PAGE_SIZE, 65536, 65537])
def test_short_streams(tmp_path: Path, length: int) -> None:
    work = Work(tmp_path, b"x" * 70000, [(0, 0, length)] if length else [])
    check_image(work, *work.compress())


@needs_zstd
@pytest.mark.parametrize("level", [-5, -1, 1, 3])
def test_zstd_reads_our_stream(tmp_path: Path, level: int) -> None:
    spans = [(1 << 20, 0, 300_000), (2 << 20, 100_000, 300_000)]
    work = Work(tmp_path, SOURCE, spans, b"head", 4 << 20, level=level)
    work.compress()
    assert subprocess.run(["zstd", "-dc", work.out], capture_output=True, check=True).stdout == work.stream()


@needs_zstd
def test_a_pipe_takes_our_stream(tmp_path: Path) -> None:
    work = Work(tmp_path, SOURCE, [(10, 0, len(SOURCE))])
    (tmp_path / "source").write_bytes(SOURCE)
    with subprocess.Popen(["zstd", "-dc"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as zstd:
        assert zstd.stdin and zstd.stdout
        result: list[bytes] = []
        reader = threading.Thread(target=lambda out: result.append(out.read()), args=(zstd.stdout,))
        reader.start()
        with (tmp_path / "source").open("rb") as source, zstd.stdin as pipe:
            work.run(source.fileno(), pipe.fileno())
        reader.join()
    assert result == [work.stream()]


def scattered(pages: int) -> tuple[bytes, list[Span]]:
    """Every other page of a source, last page first in the stream, and pages at both sides of a slice's border."""
    source = b"".join(page.to_bytes(4, "little") * 1024 for page in range(2 * pages))
    order = [2 * page + 1 for page in reversed(range(pages))]
    return source, [(i * PAGE_SIZE, page * PAGE_SIZE, PAGE_SIZE) for i, page in enumerate(order)]


@pytest.mark.parametrize("map_gap", [0, PAGE_SIZE, 2**64 - 1])
def test_scattered_pages(tmp_path: Path, map_gap: int) -> None:
    source, spans = scattered(SLICE // PAGE_SIZE)
    work = Work(tmp_path, source, spans, frame_size=1 << 20, map_gap=map_gap)
    length, entries = work.compress()
    check_image(work, length, entries)
    destination = tmp_path / "destination"
    destination.write_bytes(bytes(len(source)))
    assert work.restore(entries, spans, destination) == len(source) // 2
    expected = bytearray(len(source))
    for _, offset, size in spans:
        expected[offset : offset + size] = source[offset : offset + size]
    assert destination.read_bytes() == expected


def test_more_slices_than_are_kept(tmp_path: Path) -> None:
    source = tmp_path / "sparse"
    spans = [(i * PAGE_SIZE, i * SLICE + PAGE_SIZE * 7, PAGE_SIZE) for i in range(150)]
    with source.open("w+b") as file:
        file.truncate(150 * SLICE)
        for i, (_, offset, _) in enumerate(spans):
            file.seek(offset)
            file.write(bytes([i]) * PAGE_SIZE)
        file.flush()
        work = Work(tmp_path, b"", [], length=150 * PAGE_SIZE)
        work.spans = spans
        with work.out.open("w+b") as out:
            work.run(file.fileno(), out.fileno())
        stream = b"".join(bytes([i]) * PAGE_SIZE for i in range(150))
        assert _core.decompress_bytes(work.out.read_bytes(), len(stream)) == stream


def test_a_source_that_cannot_be_mapped(tmp_path: Path) -> None:
    memory = mmap.mmap(-1, 300_000)
    memory[:] = SOURCE[:300_000]
    maps = Path("/proc/self/maps").read_text().splitlines()
    address = int(next(line for line in maps if "zero" in line).split("-")[0], 16)
    with Path("/proc/self/mem").open("rb") as source, (tmp_path / "out").open("w+b") as out:
        work = Work(tmp_path, b"", [(0, address, 300_000)])
        work.run(source.fileno(), out.fileno())
    assert _core.decompress_bytes(work.out.read_bytes(), 300_000) == memory[:]


def test_a_destination_that_cannot_be_mapped(tmp_path: Path) -> None:
    work = Work(tmp_path, SOURCE, [(0, 0, len(SOURCE))])
    _, entries = work.compress()
    destination = tmp_path / "destination"
    destination.write_bytes(bytes(len(SOURCE)))
    assert work.restore(entries, work.spans, destination, flags=os.O_WRONLY) == len(SOURCE)
    assert destination.read_bytes() == SOURCE


@pytest.mark.parametrize("size", [100_000, 5_000_000])
def test_direct(tmp_path: Path, size: int) -> None:
    source = os.urandom(size)
    work = Work(tmp_path, source, [(0, 0, size)], frame_size=1 << 18, out_offset=PAGE_SIZE, direct=True)
    try:
        length, entries = work.compress()
    except OSError as error:
        if error.errno == errno.EINVAL and error.filename:
            pytest.skip(f"no O_DIRECT on {tmp_path}: run with --basetemp on a disk")
        raise
    check_image(work, length, entries)
    destination = tmp_path / "destination"
    destination.write_bytes(bytes(size))
    assert work.restore(entries, work.spans, destination) == size
    assert destination.read_bytes() == source
    os.truncate(work.out, PAGE_SIZE + SeekTable(entries).compressed_length - 100)
    with pytest.raises(_core.Damaged, match="the file ends before it does"):
        work.restore(entries, work.spans, destination)


@few
@given(st.data(), st.booleans())
def test_an_image_in_extents(tmp_path: Path, data: st.DataObject, direct: bool) -> None:
    """The image lies in pieces of a file, in any order; not a byte beside them is touched."""
    unit = PAGE_SIZE if direct else 1
    size = 400_000
    sizes = [*data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=12)), (size + 20_000) // unit]
    gaps = data.draw(st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes)))
    extents, at = [], 0
    for count, gap in zip(sizes, gaps, strict=True):
        extents.append((at + gap * unit, count * unit))
        at += (gap + count) * unit
    order = data.draw(st.permutations(extents))
    packed = b"".join(struct.pack("=QQ", *extent) for extent in order)
    work = Work(tmp_path, os.urandom(size), [(0, 0, size)], frame_size=50_000, out_offset=unit, direct=direct)
    work.extents = packed
    try:
        length, entries = work.compress()
    except OSError as error:
        if error.errno == errno.EINVAL and error.filename:
            pytest.skip(f"no O_DIRECT on {tmp_path}: run with --basetemp on a disk")
        raise
    written = work.out.read_bytes().ljust(at, b"\0")
    image = b"".join(written[start : start + count] for start, count in order)
    table = SeekTable(entries)
    assert not any(image[:unit]) and image[unit : unit + length].endswith(table.encode())
    assert not any(image[unit + length :])
    beside = bytearray(written)
    for start, count in extents:
        beside[start : start + count] = bytes(count)
    assert not any(beside)
    destination = tmp_path / "destination"
    destination.write_bytes(bytes(size))
    assert work.restore(entries, work.spans, destination) == size
    assert destination.read_bytes() == work.source


def test_extents_that_are_none(tmp_path: Path) -> None:
    work = Work(tmp_path, SOURCE, [(0, 0, len(SOURCE))])
    for extents in (b"x", bytes(24), struct.pack("=QQ", 2**63 - 5, 10), struct.pack("=4Q", 0, 2**62, 0, 2**62)):
        work.extents = extents
        with pytest.raises(ValueError, match="extents"):
            work.compress()
    work.extents = struct.pack("=QQ", 0, 1000)
    with pytest.raises(OSError, match="cannot write"):
        work.compress()


def test_the_limit(tmp_path: Path) -> None:
    work = Work(tmp_path, os.urandom(1 << 20), [(0, 0, 1 << 20)])
    length, _ = work.compress()
    exact = replace(work, limit=length)
    exact.compress()
    with pytest.raises(OSError, match=rf"{length} bytes are needed so far, {length - 1} are there") as caught:
        replace(work, limit=length - 1).compress()
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="are there"):
        replace(work, limit=500_000).compress()
    assert work.out.stat().st_size <= 500_000


def test_a_full_device(tmp_path: Path) -> None:
    work = Work(tmp_path, os.urandom(1 << 22), [(0, 0, 1 << 22)])
    (tmp_path / "source").write_bytes(work.source)
    refused = pytest.raises(OSError, match=r"cannot write .* of the output")
    with Path("/dev/full").open("wb") as out, (tmp_path / "source").open("rb") as source, refused as caught:
        work.run(source.fileno(), out.fileno())
    assert caught.value.errno == errno.ENOSPC


def test_a_source_with_an_error(tmp_path: Path) -> None:
    work = Work(tmp_path, b"", [(0, 0x1000, 4096)])
    refused = pytest.raises(OSError, match="cannot read from the source 4096 bytes at offset 4096")
    with Path("/proc/self/mem").open("rb") as source, work.out.open("wb") as out, refused as caught:
        work.run(source.fileno(), out.fileno())
    assert caught.value.errno == errno.EIO
