"""The native core: progress, cancelling, and what it refuses before anything is written."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from streams import SOURCE, Work

from kjump import _core
from kjump.errors import KjumpError
from kjump.formats.seekable import Frame, SeekTable


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
