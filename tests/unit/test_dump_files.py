"""Every source to every destination, contents compared; and destinations that fail."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tinykernel

from kjump import _core
from kjump.dump import bitmaps, outputs, writers
from kjump.dump.create import Format, Report, Request, dump
from kjump.dump.elfsource import ElfSource
from kjump.dump.opening import open_source
from kjump.dump.pipeline import Stopped, chunks, in_order
from kjump.dump.selection import select_level
from kjump.dump.source import Source
from kjump.dump.summary import summarize
from kjump.errors import FormatError, KjumpError, TargetError, UsageError
from kjump.formats.kdump import Method
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

KINDS = [
    (Format.ELF, False, Method.NONE),
    (Format.ELF, True, Method.NONE),
    (Format.IMAGE, False, Method.ZSTD),
    *((Format.KDUMP, False, method) for method in Method),
    (Format.KDUMP, True, Method.ZSTD),
]


@pytest.fixture
def vmcore(tmp_path: Path) -> Path:
    tinykernel.write_vmcore(tmp_path / "vmcore")
    return tmp_path / "vmcore"


def written(source: Path, out: Path, level: int | None, kind: tuple[Format, bool, Method], **more: object) -> Report:
    form, flat, method = kind
    request = Request((str(out),), level=level, format=form, flattened=flat, method=method, **more)  # type: ignore[arg-type]
    with open_source(source) as opened:
        return dump(opened, request)


def page(source: Source, frame: int) -> bytes:
    return source.read(frame * PAGE_SIZE, PAGE_SIZE)


def check(path: Path, source: Path, level: int) -> None:
    """Compare a dump, page by page, with what `level` keeps of its source."""
    with open_source(path) as made, open_source(source) as original:
        keep = select_level(original.layout, original.present, level).keep
        for frame in range(tinykernel.FRAMES):
            if keep[frame // 8] >> frame % 8 & 1:
                assert page(made, frame) == page(original, frame), frame
            elif frame < len(made.present) * 8 and made.present[frame // 8] >> frame % 8 & 1:
                assert page(made, frame) == bytes(PAGE_SIZE), frame
        assert made.info.text == original.info.text


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"{k[0].value}-{k[2].name}{'-flat' * k[1]}")
@pytest.mark.parametrize("level", [0, 1, 16, 31])
@pytest.mark.parametrize("threads", [1, 3])
def test_written_and_read_back(
    tmp_path: Path, vmcore: Path, kind: tuple[Format, bool, Method], level: int, threads: int
) -> None:
    report = written(vmcore, tmp_path / "out", level, kind, threads=threads)
    assert report.size == (tmp_path / "out").stat().st_size
    check(tmp_path / "out", vmcore, level)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "vmcore"]


@pytest.mark.parametrize(("first", "second"), list(itertools.product(KINDS[::2], KINDS[1::2])))
def test_converted(
    tmp_path: Path, vmcore: Path, first: tuple[Format, bool, Method], second: tuple[Format, bool, Method]
) -> None:
    written(vmcore, tmp_path / "first", 16, first)
    written(tmp_path / "first", tmp_path / "second", None, second)
    check(tmp_path / "second", vmcore, 16)
    written(tmp_path / "first", tmp_path / "third", 31, second)
    check(tmp_path / "third", vmcore, 31)


def test_split_files_have_all_pages_once(tmp_path: Path, vmcore: Path) -> None:
    names = tuple(str(tmp_path / f"part{i}") for i in range(3))
    with open_source(vmcore) as source:
        report = dump(source, Request(names, level=0, format=Format.KDUMP))
        total = bitmaps.count(select_level(source.layout, source.present, 0).keep)
    found = [open_source(name) for name in names]
    assert report.kept_pages == total == sum(bitmaps.count(part.present) for part in found)
    with open_source(vmcore) as source:
        for part in found:
            for first, last in _core.bitmap_runs(part.present, 0, len(part.present) * 8):
                assert part.read(first * PAGE_SIZE, (last - first) * PAGE_SIZE) == source.read(
                    first * PAGE_SIZE, (last - first) * PAGE_SIZE
                )


@pytest.mark.parametrize("kind", KINDS[:5])
def test_a_dry_run_tells_the_size_and_writes_nothing(
    tmp_path: Path, vmcore: Path, kind: tuple[Format, bool, Method]
) -> None:
    form, _, method = kind
    with open_source(vmcore) as source:
        request = Request((str(tmp_path / "out"),), level=17, format=form, method=method)
        told = dump(source, request, dry_run=True)
        assert not (tmp_path / "out").exists()
        made = dump(source, request)
    assert told.estimated and not made.estimated
    assert abs(told.size - made.size) <= (0 if form is Format.ELF else made.size / 5)


def test_no_space_says_what_was_needed(tmp_path: Path, vmcore: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset + len(data) > 200_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data, offset)

    monkeypatch.setattr(outputs.os, "pwrite", full)
    with pytest.raises(TargetError, match=r"no space left for .*out: \d+ bytes were written, about \d+ are needed"):
        written(vmcore, tmp_path / "out", 0, KINDS[0])
    assert [p.name for p in tmp_path.iterdir()] == ["vmcore"]


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path, vmcore: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(TargetError, match="exists already"):
        written(vmcore, tmp_path / "out", 0, KINDS[0])
    assert (tmp_path / "out").read_text() == "mine"
    written(vmcore, tmp_path / "out", 0, KINDS[0], force=True)
    check(tmp_path / "out", vmcore, 0)


@pytest.mark.parametrize("threads", [1, 2])
def test_stopped_by_the_listener(tmp_path: Path, vmcore: Path, threads: int) -> None:
    with pytest.raises(Stopped):
        written(vmcore, tmp_path / "out", 0, KINDS[2], threads=threads, progress=lambda *_: False)
    assert [p.name for p in tmp_path.iterdir()] == ["vmcore"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level": 32}, "0 to 31"),
        ({"destinations": ("a", "b")}, "split"),
        ({"destinations": ("-",), "format": Format.KDUMP}, "flattened"),
        ({"method": Method.LZO}, "images are compressed with zstd"),
    ],
)
def test_requests_that_make_no_sense(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Request(**{"destinations": ("x",), **changes}).check()  # type: ignore[arg-type]


def test_what_is_no_file_is_not_replaced(tmp_path: Path, vmcore: Path) -> None:
    with pytest.raises(TargetError, match="is a folder: name a file"):
        written(vmcore, tmp_path, 0, KINDS[0], force=True)


def test_a_pipe_takes_an_image_and_a_flattened_file(tmp_path: Path, vmcore: Path) -> None:
    for form in ("image", "flattened", "elf"):
        out = tmp_path / form
        command = [sys.executable, "-m", "kjump.cli", "dump", str(vmcore), "-", "--format", form, "--level", "16"]
        command[2:3] = ["from kjump.cli import main; main()"]
        command[1:2] = ["-c"]
        command = [c for c in command if c not in ("kjump.cli",)]
        with out.open("wb") as file:
            cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file)
            subprocess.run(command, stdout=cat.stdin, check=True, capture_output=False, stderr=subprocess.DEVNULL)
            assert cat.stdin is not None
            cat.stdin.close()
            cat.wait()
        check(out, vmcore, 16)


def test_what_is_opened_is_closed_again(tmp_path: Path, vmcore: Path) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files()
    for _ in range(3):
        written(vmcore, Path("/dev/null"), 0, KINDS[-1])
        with pytest.raises(Stopped):
            written(vmcore, Path("/dev/null"), 0, KINDS[-1], progress=lambda *_: False)
    assert open_files() == before


def test_kdump_to_a_pipe_says_what_to_do(tmp_path: Path, vmcore: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "CHUNK", 64)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = threading.Thread(target=fifo.read_bytes, daemon=True)
    reader.start()
    with pytest.raises(TargetError, match="flattened"):
        written(vmcore, fifo, 0, KINDS[4])


class OneReaderOnly:
    """A file like /proc/kcore: a second reader spoils what the first one gets."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self.there = RangeSet([Range(0, len(data))])
        self._data = data
        self._readers = 0

    def read(self, offset: int, length: int) -> bytes:
        self._readers += 1
        time.sleep(0.001)
        data = self._data[offset : offset + length] if self._readers == 1 else b"?" * length
        self._readers -= 1
        return data


@pytest.mark.parametrize("live", [True, False])
def test_live_memory_is_read_by_one_thread_at_a_time(vmcore: Path, live: bool) -> None:
    with ElfSource(OneReaderOnly(vmcore.read_bytes()), os.open(os.devnull, os.O_RDONLY), "a core", live=live) as source:
        keep, end = source.present, len(source.present) * 8
        read = in_order(lambda chunk: source.read_pages(keep, chunk.start, chunk.end), chunks(keep, 0, end, 8), 4)
        found = b"".join(data for _, data in read)
    with open_source(vmcore) as source:
        assert (found == source.read_pages(source.present, 0, end)) is live


def test_info(vmcore: Path) -> None:
    with open_source(vmcore) as source:
        found = summarize(source, zeros=True, threads=2)
    assert found.total == tinykernel.FRAMES - 1 == sum(found.classes.values())
    assert (found.kernel.release, found.kernel.cpus, found.kernel.crash_time) == ("6.12.0-tiny", 2, 1_700_000_000)
    assert found.zeros and json.dumps(found.as_json())


@pytest.mark.parametrize("data", [b"", b"hello", b"\x28\xb5\x2f\xfd" + bytes(100), b"KDUMP   ", b"\x7fELF"])
def test_what_is_no_dump(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(FormatError, match="file: "):
        open_source(tmp_path / "file")
    with pytest.raises(KjumpError, match="cannot open"):
        open_source(tmp_path / "missing")


def test_an_incomplete_kdump_file_reads_as_far_as_it_goes(tmp_path: Path, vmcore: Path) -> None:
    import struct

    written(vmcore, tmp_path / "out", 0, (Format.KDUMP, False, Method.NONE))
    data = bytearray((tmp_path / "out").read_bytes())
    struct.pack_into("<I", data, 424, 8)  # the status word: incomplete
    descriptors = 3 * 4096 + 4096
    start = data.index(struct.pack("<QII", len(data) - 4096, 4096, 0))
    data[start : start + 24] = bytes(24)
    assert start > descriptors
    (tmp_path / "cut").write_bytes(data[:-4096])
    with open_source(tmp_path / "cut") as source:
        assert not source.complete
        assert any(re.match(r"1 of \d+ pages", text) for text in source.warnings)
        with pytest.raises(FormatError, match="not all memory"):
            page(source, tinykernel.FRAMES - 1)
        assert page(source, 0) == tinykernel.memory()[:PAGE_SIZE]
