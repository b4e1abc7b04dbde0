"""The native core against plain Python, and against the zstd program."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kjump import _core
from kjump.errors import ImageError, KjumpError
from kjump.formats.seekable import Frame, SeekTable
from kjump.memory import PAGE_SIZE

SLICE = 16 << 20
"""How much of a file the core maps at a time."""

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
needs_zstd = pytest.mark.skipif(shutil.which("zstd") is None, reason="the zstd program is not installed")


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


def xxh64(data: bytes) -> int:
    """XXH64 with seed 0, by its specification."""
    p1, p2, p3, p4, p5 = (
        0x9E3779B185EBCA87,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0x85EBCA77C2B2AE63,
        0x27D4EB2F165667C5,
    )
    mask = 2**64 - 1

    def rotate(x: int, r: int) -> int:
        return (x << r | x >> 64 - r) & mask

    def step(a: int, lane: int) -> int:
        return rotate(a + lane * p2 & mask, 31) * p1 & mask

    accs = [p1 + p2 & mask, p2, 0, -p1 & mask]
    at = 0
    while len(data) - at >= 32:
        accs = [step(a, lane) for a, lane in zip(accs, struct.unpack_from("<4Q", data, at), strict=True)]
        at += 32
    h = p5
    if at:
        h = sum(rotate(a, r) for a, r in zip(accs, (1, 7, 12, 18), strict=True)) & mask
        for a in accs:
            h = ((h ^ step(0, a)) * p1 + p4) & mask
    h = h + len(data) & mask
    for size, odd in ((8, p1), (4, p1), (1, p5)):
        while len(data) - at >= size:
            lane = int.from_bytes(data[at : at + size], "little")
            if size == 8:
                h = (rotate(h ^ step(0, lane), 27) * p1 + p4) & mask
            elif size == 4:
                h = (rotate(h ^ lane * odd & mask, 23) * p2 + p3) & mask
            else:
                h = rotate(h ^ lane * odd & mask, 11) * p1 & mask
            at += size
    h = (h ^ h >> 33) * p2 & mask
    h = (h ^ h >> 29) * p3 & mask
    return h ^ h >> 32


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


# The stream


Span = tuple[int, int, int]


def pack(spans: list[Span]) -> bytes:
    return b"".join(struct.pack("=3Q", *span) for span in spans)


@dataclass
class Work:
    """One stream: what `compress` is asked, and the directory for its files."""

    folder: Path
    source: bytes
    spans: list[Span]
    head: bytes = b""
    length: int = 0
    frame_size: int = 1 << 16
    level: int = 1
    threads: int = 2
    out_offset: int = 0
    direct: bool = False
    limit: int = 1 << 40
    trailer: Callable[[bytes], bytes] = lambda entries: SeekTable(entries).encode()
    map_gap: int = 0
    extents: bytes = b""

    def __post_init__(self) -> None:
        ends = [stream + length for stream, _, length in self.spans]
        self.length = self.length or max([len(self.head), *ends])

    def stream(self) -> bytes:
        """The stream, by plain Python."""
        stream = bytearray(self.length)
        stream[: len(self.head)] = self.head
        for at, offset, length in self.spans:
            stream[at : at + length] = self.source[offset : offset + length]
        return bytes(stream)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def compress(self, progress: _core.Progress | None = None) -> tuple[int, bytes]:
        (self.folder / "source").write_bytes(self.source)
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | (os.O_DIRECT if self.direct else 0)
        out = os.open(self.out, flags, 0o600)
        try:
            with (self.folder / "source").open("rb") as source:
                return self.run(source.fileno(), out, progress)
        finally:
            os.close(out)

    def run(self, source_fd: int, out_fd: int, progress: _core.Progress | None = None) -> tuple[int, bytes]:
        return _core.compress(
            source_fd,
            pack(self.spans),
            self.head,
            self.length,
            self.frame_size,
            self.level,
            self.threads,
            out_fd,
            self.out_offset,
            self.direct,
            self.limit,
            self.trailer,
            progress,
            self.map_gap,
            self.extents,
        )

    def restore(
        self,
        entries: bytes,
        spans: list[Span],
        destination: Path,
        *,
        flags: int = os.O_RDWR,
        progress: _core.Progress | None = None,
    ) -> int:
        image = os.open(self.out, os.O_RDONLY | (os.O_DIRECT if self.direct else 0))
        dest = os.open(destination, flags)
        try:
            return _core.restore(
                image,
                self.out_offset,
                entries,
                pack(spans),
                dest,
                self.threads,
                self.direct,
                progress,
                self.map_gap,
                self.extents,
            )
        finally:
            os.close(image)
            os.close(dest)


def check_image(work: Work, length: int, entries: bytes) -> None:
    """Hold an image to the stream that it should be, frame by frame."""
    data = work.out.read_bytes()
    assert not any(data[: work.out_offset])
    image, padding = data[work.out_offset : work.out_offset + length], data[work.out_offset + length :]
    assert not any(padding)
    assert len(data) % PAGE_SIZE == 0 and len(padding) < PAGE_SIZE if work.direct else not padding
    table = SeekTable(entries)
    assert image[table.compressed_length :] == table.encode()
    stream = work.stream()
    assert table.stream_length == len(stream)
    assert all(frame.size == work.frame_size for frame in list(table)[:-1])
    for frame in table:
        content = stream[frame.stream_offset : frame.stream_offset + frame.size]
        compressed = image[frame.compressed_offset : frame.compressed_offset + frame.compressed_size]
        assert _core.decompress_frame(compressed, frame.size, frame.checksum) == content
    for frame in list(table)[-1:]:
        assert frame.checksum == xxh64(stream[frame.stream_offset :]) % 2**32


@st.composite
def layouts(draw: st.DrawFn, source_size: int) -> tuple[bytes, list[Span], int]:
    """A head, spans that may take any part of the source, and the length of the stream."""
    head = draw(st.binary(max_size=100))
    at, spans = len(head), []
    for _ in range(draw(st.integers(0, 8))):
        at += draw(st.sampled_from([0, 0, 1, 4096, 70000]))
        length = draw(st.sampled_from([1, 4096, 8192, 5000, 150_000]))
        offset = draw(st.integers(0, source_size - length) | st.integers(0, 40).map(lambda page: page * PAGE_SIZE))
        spans.append((at, offset, length))
        at += length
    return head, spans, at + draw(st.sampled_from([0, 1, 100_000]))


SOURCE = os.urandom(100_000) + bytes(100_000) + b"kjump" * 40_000


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


def big(tmp_path: Path) -> Work:
    return Work(tmp_path, os.urandom(1 << 20), [(i << 20, 0, 1 << 20) for i in range(400)], level=3, frame_size=1 << 18)


def test_progress(tmp_path: Path) -> None:
    calls: list[tuple[int, int, int]] = []
    work = big(tmp_path)
    _, entries = work.compress(lambda *numbers: calls.append(numbers))
    table = SeekTable(entries)
    assert calls == sorted(calls)
    assert calls[-1] == (work.length, work.length, table.compressed_length)
    calls.clear()
    (tmp_path / "destination").write_bytes(bytes(1 << 20))
    work.restore(entries, [(100, 0, 1 << 20)], tmp_path / "destination", progress=lambda *n: calls.append(n))
    wanted = list(table)[:5]
    assert calls[-1] == (5 << 18, 5 << 18, sum(frame.compressed_size for frame in wanted))


def test_cancel(tmp_path: Path) -> None:
    with pytest.raises(_core.Cancelled) as caught:
        big(tmp_path).compress(lambda *_: False)
    assert isinstance(caught.value, KjumpError)
    work = Work(tmp_path, SOURCE, [(0, 0, len(SOURCE))])
    _, entries = work.compress()
    with pytest.raises(_core.Cancelled):
        work.restore(entries, [], work.out, progress=lambda *_: False)


def test_callbacks_may_raise(tmp_path: Path) -> None:
    def fail(*_: object) -> bytes:
        raise KeyError("mine")

    work = big(tmp_path)
    with pytest.raises(KeyError, match="mine"):
        work.compress(fail)  # type: ignore[arg-type]
    work = Work(tmp_path, SOURCE, [(0, 0, len(SOURCE))])
    with pytest.raises(KeyError, match="mine"):
        replace(work, trailer=fail).compress()
    with pytest.raises(TypeError):
        replace(work, trailer=lambda _: None).compress()  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"spans": [(0, 0, 0)]}, "span 0 .* is empty"),
        ({"spans": [(0, 0, 100), (99, 200, 1)]}, "span 1 .* begins before"),
        ({"spans": [(0, 0, 1)], "head": b"abc"}, "span 0 .* begins before"),
        ({"spans": [(1000, 0, 1)], "length": 1000}, "beyond the stream"),
        ({"spans": [(2**64 - 1, 0, 2)], "length": 1000}, "beyond the stream"),
        ({"spans": [(0, 2**64 - 1, 2)], "length": 1000}, "beyond the file"),
        ({"spans": [(0, len(SOURCE) - 1, 2)], "length": 1000}, "beyond the file"),
        ({"head": b"abc", "length": 2}, "head is longer"),
        ({"frame_size": 0}, "frame size"),
        ({"frame_size": 2**28 + 1}, "frame size"),
        ({"frame_size": 1, "length": 2**40}, "too many frames"),
        ({"length": 2**64 - 1}, "too many frames"),
        ({"threads": 0}, "threads"),
        ({"threads": 257}, "threads"),
        ({"level": 50}, "no compression level"),
        ({"out_offset": 2**63}, "impossible offset"),
        ({"limit": 2**64 - 1}, "impossible offset"),
    ],
)
def test_compress_refuses(tmp_path: Path, change: dict[str, object], text: str) -> None:
    work = replace(Work(tmp_path, SOURCE, []), **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=text):
        work.compress()
    assert work.out.stat().st_size == 0


def test_odd_buffers_are_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple of 24"):
        _core.compress(0, b"x", b"", 10, 10, 1, 1, 1, 0, False, 10, bytes)
    with pytest.raises(ValueError, match="direct output must begin"):
        _core.compress(0, b"", b"", 10, 10, 1, 1, 1, 100, True, 10, bytes)
    with pytest.raises(ValueError, match="not a list of frames"):
        _core.restore(0, 0, b"x", b"", 1, 1, False)
    with pytest.raises(OSError, match="Bad file descriptor"):
        _core.compress(-1, b"", b"", 10, 10, 1, 1, 1, 0, False, 10, bytes)


@pytest.fixture
def image(tmp_path: Path) -> tuple[Work, bytes, list[Frame]]:
    work = Work(tmp_path, SOURCE, [(0, 0, len(SOURCE))], frame_size=50_000)
    _, entries = work.compress()
    (tmp_path / "destination").write_bytes(b"." * len(SOURCE))
    return work, entries, list(SeekTable(entries))


@pytest.mark.parametrize("at", [0, 4, 5, 100, -1])
def test_damage_is_found_before_it_is_written(image: tuple[Work, bytes, list[Frame]], at: int) -> None:
    work, entries, frames = image
    data = bytearray(work.out.read_bytes())
    data[frames[1].compressed_offset + at % frames[1].compressed_size] ^= 4
    work.out.write_bytes(data)
    destination = work.folder / "destination"
    with pytest.raises(_core.Damaged, match=r"frame 1 of the image \(bytes from 50000 of the stream\) is damaged"):
        work.restore(entries, work.spans, destination)
    assert destination.read_bytes()[50_000:100_000] == b"." * 50_000
    spans = [(0, 0, 50_000), (100_000, 100_000, 1000)]
    assert work.restore(entries, spans, destination) == 51_000


def test_a_frame_of_another_image_is_not_taken(image: tuple[Work, bytes, list[Frame]]) -> None:
    """Sound in itself, of the right size, at the right place: but not what was written last."""
    work, entries, _ = image
    other = replace(work, source=os.urandom(100_000) + SOURCE[100_000:])
    other.compress()
    with pytest.raises(_core.Damaged, match="its checksum is not the seek table's"):
        work.restore(entries, work.spans, work.folder / "destination")


def test_restore_refuses(image: tuple[Work, bytes, list[Frame]]) -> None:
    work, entries, _ = image
    destination = work.folder / "destination"
    for spans, text in [
        ([(0, 0, len(SOURCE) + 1)], "beyond the stream"),
        ([(0, 1, len(SOURCE))], "beyond the file"),
        ([(0, 0, 100), (100, 99, 10)], "two spans share the bytes at offset 99"),
        ([(0, 0, 100), (50, 200, 10)], "begins before"),
        ([(2**64 - 1, 0, 100)], "beyond the stream"),
    ]:
        with pytest.raises(ValueError, match=text):
            work.restore(entries, spans, destination)
    for entry in [(2**32 - 1, 1000, 0), (10, 2**32 - 1, 0)]:
        with pytest.raises(ValueError, match="frame 0 has impossible sizes"):
            work.restore(struct.pack("=3I", *entry), [], destination)
    with pytest.raises(ValueError, match="threads"):
        replace(work, threads=0).restore(entries, [], destination)
    assert destination.read_bytes() == b"." * len(SOURCE)


def test_a_cut_image(image: tuple[Work, bytes, list[Frame]]) -> None:
    work, entries, frames = image
    os.truncate(work.out, frames[2].compressed_offset + 5)
    with pytest.raises(_core.Damaged, match=r"frame 2 .* the file ends before it does"):
        work.restore(entries, work.spans, work.folder / "destination")
