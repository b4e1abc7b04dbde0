"""How many threads an image gets, on machines with many CPUs and little memory."""

import contextlib
import os
import random
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump import _core
from kjump.host import procfs
from kjump.host.libc import libc
from kjump.image import restore, threads
from kjump.image.headers import FRAME_SIZE
from kjump.target.disks import FdDisk

MIB = 1 << 20
levels = st.sampled_from([-5, -2, 1, 3, 9, 19])


@given(cpus=st.integers(1, 5000), available=st.integers(0, 1 << 42), level=levels)
def test_threads_fit_into_memory_and_into_the_native_core(cpus: int, available: int, level: int) -> None:
    found = threads.threads_for(cpus, available, level=level)
    assert 1 <= found <= min(cpus, 256)
    each = 3 * FRAME_SIZE + threads.compressor_size(level) + MIB
    assert found == 1 or found * each <= available
    more = threads.threads_for(cpus + 1, available + MIB, level=level)
    assert more >= found


def test_a_small_window_and_many_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "meminfo", lambda: {"MemAvailable": 60 * MIB})
    assert threads.threads_to_save(2, -2) == 2
    assert threads.threads_to_save(300, -2) == 9
    assert threads.threads_to_save(300, 19) == 1
    assert threads.threads_to_restore(2) == 2
    assert threads.threads_to_restore(300) == 7
    monkeypatch.setattr(procfs, "meminfo", lambda: {"MemAvailable": 1 << 40})
    assert threads.threads_to_save(300, -2) == 256
    assert threads.threads_to_restore(300) == 254


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


@contextlib.contextmanager
def _peak(found: list[int]) -> Iterator[None]:
    """Put into `found` by how many bytes this process's memory grew at most."""
    libc().malloc_trim(0)
    base, over = _anonymous(), threading.Event()

    def watch() -> None:
        while not over.is_set():
            found.append(_anonymous() - base)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


@pytest.mark.parametrize("level", [-5, 3, 19])
def test_a_thread_takes_no_more_memory_than_is_reckoned(level: int, tmp_path: Path) -> None:
    size, crew = 24 * MIB, 8
    (tmp_path / "source").write_bytes(random.Random(1).randbytes(size // 2) * 2)
    span = struct.pack("=3Q", 0, 0, size)
    files = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("source", "image", "copy")]
    source, image, copy = files
    os.ftruncate(copy, size)
    saving: list[int] = []
    restoring: list[int] = []
    try:
        with _peak(saving):
            _, entries = _core.compress(
                source, span, b"", size, FRAME_SIZE, level, crew, image, 0, False, 1 << 40, lambda _: b""
            )
        with _peak(restoring):
            _core.restore(image, 0, entries, span, copy, crew, False)
    finally:
        for fd in files:
            os.close(fd)
    each = 3 * FRAME_SIZE + threads.compressor_size(level) + MIB
    assert MIB * crew < max(saving) <= each * crew + 4 * MIB
    assert max(restoring) <= (3 * FRAME_SIZE + threads.compressor_size(1) + MIB) * (crew + 2)
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "source").read_bytes()


def test_the_restorer_asks_for_no_more_threads_than_there_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(_core, "restore", lambda **given: asked.append(given["threads"]))
    target = SimpleNamespace(disk=FdDisk(0), packed_extents=lambda: b"")
    opened = SimpleNamespace(superblock=SimpleNamespace(image_offset=0), seek_table=SimpleNamespace(entries=b""))
    landing = SimpleNamespace(fd=0, spans=[])
    for available in (1 << 40, 60 * MIB):
        monkeypatch.setattr(procfs, "meminfo", lambda available=available: {"MemAvailable": available})
        restore.restore(target, opened, landing, threads=300)  # type: ignore[arg-type]
    assert asked == [254, 7]
