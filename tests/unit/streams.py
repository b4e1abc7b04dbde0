"""Streams for the tests of the native core: what is compressed, where it goes, and a reference in plain Python."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from kjump import _core
from kjump.formats.seekable import SeekTable
from kjump.memory import PAGE_SIZE

SLICE = 16 << 20
"""How much of a file the core maps at a time."""

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
needs_zstd = pytest.mark.skipif(shutil.which("zstd") is None, reason="the zstd program is not installed")


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
