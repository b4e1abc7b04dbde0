"""How fast the native core is: `python bench/core.py [MiB]`, with the zstd program beside it in the same run.

The sample is made of what memory is made of: programs and libraries of this machine, and a quarter of zeros.
It is kept in memory (/dev/shm), as are the results, so that no disk is measured. Best of three runs.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kjump import _core
from kjump.formats.seekable import SeekTable
from kjump.memory import PAGE_SIZE

FRAME_SIZE = 1 << 20
RUNS = 3
_SPAN = struct.Struct("=3Q")


def make_sample(path: Path, size: int) -> None:
    """Write `size` bytes: three megabytes of files, one of zeros, and so on."""
    files = (p for top in ("/usr/bin", "/usr/lib") for p in Path(top).rglob("*") if p.is_file() and not p.is_symlink())
    with path.open("wb") as out:
        pending = b""
        while out.tell() < size:
            while len(pending) < 3 << 20:
                pending += next(files).read_bytes()
            out.write(pending[: 3 << 20] + bytes(1 << 20))
            pending = pending[3 << 20 :]
        out.truncate(size)


def best(work: Callable[[], None]) -> float:
    """Return the seconds that the fastest of some runs takes."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def show(name: str, size: int, seconds: float, note: str = "") -> None:
    """Print one line: what, megabytes (10^6) a second, and a note."""
    print(f"{name:<44}{size / seconds / 1e6:>9.0f} MB/s  {note}", flush=True)


def bench_streams(folder: Path, sample: Path) -> None:
    """Compress and restore the sample as one span, at several levels."""
    size = sample.stat().st_size
    spans = _SPAN.pack(0, 0, size)
    for level in (-5, -1, 1, 3):
        for threads in (1, 2):
            _bench_stream(folder, sample, spans, f"level {level}, {threads} threads", level, threads)
        packed = folder / "packed"
        speed = f"--fast={-level}" if level < 0 else f"-{level}"
        for threads in (1, 2):
            command = ["zstd", "-q", "-f", speed, f"-T{threads}", "--check", sample, "-o", packed]
            seconds = best(lambda command=command: subprocess.run(command, check=True))  # type: ignore[misc]
            ratio = packed.stat().st_size / size
            show(f"  zstd {speed} -T{threads}", size, seconds, f"{ratio:.1%}")
        command = ["zstd", "-q", "-f", "-d", packed, "-o", folder / "plain"]
        show("  zstd -d", size, best(lambda: subprocess.run(command, check=True)))  # noqa: B023


def _bench_stream(folder: Path, sample: Path, spans: bytes, name: str, level: int, threads: int) -> None:
    size = sum(span[2] for span in _SPAN.iter_unpack(spans))
    result: list[tuple[int, bytes]] = []
    with sample.open("rb") as source, (folder / "out").open("w+b") as out, (folder / "plain").open("w+b") as plain:
        plain.truncate(sample.stat().st_size)

        def compress() -> None:
            result[:] = [
                _core.compress(
                    source.fileno(),
                    spans,
                    b"",
                    size,
                    FRAME_SIZE,
                    level,
                    threads,
                    out.fileno(),
                    0,
                    False,
                    1 << 62,
                    lambda entries: SeekTable(entries).encode(),
                )
            ]

        seconds = best(compress)
        length, entries = result[0]
        show(f"compress, {name}", size, seconds, f"{length / size:.1%}")
        seconds = best(lambda: _restore(out.fileno(), entries, spans, plain.fileno(), threads))
        show(f"restore, {name}", size, seconds)


def _restore(image: int, entries: bytes, spans: bytes, destination: int, threads: int) -> None:
    _core.restore(image, 0, entries, spans, destination, threads, False)


def bench_scattered(folder: Path, sample: Path) -> None:
    """Compress and restore every other page of the sample, in random order: a span for each."""
    pages = list(range(0, sample.stat().st_size // PAGE_SIZE, 2))
    random.Random(1).shuffle(pages)
    spans = b"".join(_SPAN.pack(i * PAGE_SIZE, page * PAGE_SIZE, PAGE_SIZE) for i, page in enumerate(pages))
    _bench_stream(folder, sample, spans, "scattered pages, level 1, 2 threads", 1, 2)


def bench_pages(sample: Path) -> None:
    """Classify the page structs of 16 GiB, find runs in the bitmap, and zero pages in the sample."""
    count, stride = (16 << 30) // PAGE_SIZE, 64
    buddy, used = struct.pack("<QI", 3, 0xFFFFFF7F), struct.pack("<QI", 0, 0xFFFFFFFF)
    structs = b"".join(bytes(40) + (buddy if i % 16 == 0 else used) + bytes(12) for i in range(64)) * (count // 64)
    bitmap = bytearray(count // 8)
    seconds = best(lambda: _classify(structs, bitmap))
    show("classify_buddy", len(structs), seconds, f"{seconds * 1e3:.1f} ms for the page structs of 16 GiB")
    seconds = best(lambda: _runs(bitmap, count))
    show("bitmap_runs", len(bitmap), seconds, f"{seconds * 1e3:.1f} ms for {len(_runs(bitmap, count))} runs")
    data = sample.read_bytes()
    show("zero_pages", len(data), best(lambda: _zero(data)))


def _classify(structs: bytes, bitmap: bytearray) -> None:
    _core.classify_buddy(structs, 0, 64, 48, 40, 0xFFFFFF7F, bitmap, 0)


def _runs(bitmap: bytearray, count: int) -> list[tuple[int, int]]:
    return _core.bitmap_runs(bitmap, 0, count)


def _zero(data: bytes) -> None:
    _core.zero_pages(data)


def main() -> None:
    """Run all of it in a directory of its own."""
    size = int(sys.argv[1] if len(sys.argv) > 1 else 1024) << 20
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        make_sample(folder / "sample", size)
        print(f"{size >> 20} MiB, {os.cpu_count()} cores, {subprocess.getoutput('zstd --version').strip('* ')}")
        bench_streams(folder, folder / "sample")
        bench_scattered(folder, folder / "sample")
        bench_pages(folder / "sample")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
