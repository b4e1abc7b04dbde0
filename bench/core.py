"""How fast the native core is: `python bench/core.py [MiB]`, with the zstd program beside it in the same run.

The sample is made of what memory is made of: programs and libraries of this machine, and a quarter of zeros.
It is kept in memory (/dev/shm), as are the results, so that no disk is measured. Best of three runs. The second
column counts processor time in place of time, for machines that are busy with something else too.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from kjump import _core
from kjump.dump.classes import PageFields
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


def cpu_seconds() -> float:
    """Return the processor time that this process and the ones it waited for have taken."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def show(name: str, size: int, work: Callable[[], object], note: Callable[[], str] = str) -> None:
    """Do `work` some times and print one line: what, megabytes (10^6) a second, a processor second, a note."""
    walls, cpus = [], []
    for _ in range(RUNS):
        wall, cpu = time.perf_counter(), cpu_seconds()
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(cpu_seconds() - cpu)
    print(f"{name:<44}{size / min(walls) / 1e6:>9.0f} {size / max(min(cpus), 1e-9) / 1e6:>9.0f}   {note()}", flush=True)


def bench_streams(folder: Path, sample: Path) -> None:
    """Compress and restore the sample as one span, at several levels."""
    size = sample.stat().st_size
    spans = _SPAN.pack(0, 0, size)
    for level in (-5, -1, 1, 3):
        for threads in (1, 2):
            _bench_stream(folder, sample, spans, f"level {level}, {threads} threads", level, threads)
        speed = f"--fast={-level}" if level < 0 else f"-{level}"
        _bench_program(folder, sample, speed)


def _bench_program(folder: Path, sample: Path, speed: str) -> None:
    size, packed = sample.stat().st_size, folder / "packed"
    for threads in (1, 2):
        command = ["zstd", "-q", "-f", speed, f"-T{threads}", "--check", str(sample), "-o", str(packed)]
        run = partial(subprocess.run, command, check=True)
        show(f"  zstd {speed} -T{threads}", size, run, lambda: _ratio(packed, size))
    command = ["zstd", "-q", "-f", "-d", str(packed), "-o", str(folder / "plain")]
    show("  zstd -d", size, partial(subprocess.run, command, check=True))


def _ratio(packed: Path, size: int) -> str:
    return f"{packed.stat().st_size / size:.1%}"


def _bench_stream(
    folder: Path, sample: Path, spans: bytes, name: str, level: int, threads: int, map_gap: int = 0
) -> None:
    size = sum(span[2] for span in _SPAN.iter_unpack(spans))
    result: list[tuple[int, bytes]] = []
    with sample.open("rb") as source, (folder / "out").open("w+b") as out, (folder / "plain").open("w+b") as plain:
        plain.truncate(sample.stat().st_size)

        def compress() -> None:
            done = _core.compress(
                source_fd=source.fileno(),
                spans=spans,
                head=b"",
                stream_length=size,
                frame_size=FRAME_SIZE,
                level=level,
                threads=threads,
                out_fd=out.fileno(),
                out_offset=0,
                direct=False,
                limit=1 << 62,
                trailer=lambda entries: SeekTable(entries).encode(),
                map_gap=map_gap,
            )
            result[:] = [done]

        show(f"compress, {name}", size, compress, lambda: f"{result[0][0] / size:.1%}")
        entries = result[0][1]
        files = (out.fileno(), 0, entries, spans, plain.fileno())
        show(f"restore, {name}", size, partial(_core.restore, *files, threads, False, map_gap=map_gap))


def bench_scattered(folder: Path, sample: Path) -> None:
    """Compress and restore every other page of the sample, in random order: a span for each."""
    pages = list(range(0, sample.stat().st_size // PAGE_SIZE, 2))
    random.Random(1).shuffle(pages)
    spans = b"".join(_SPAN.pack(i * PAGE_SIZE, page * PAGE_SIZE, PAGE_SIZE) for i, page in enumerate(pages))
    _bench_stream(folder, sample, spans, "scattered pages, level 1, 2 threads", 1, 2)
    _bench_stream(folder, sample, spans, "the same, map_gap 1 MiB", 1, 2, 1 << 20)


def bench_pages(sample: Path) -> None:
    """Classify the page structs of 16 GiB, find runs in the bitmap, and zero pages in the sample."""
    count, stride = (16 << 30) // PAGE_SIZE, 64
    buddy, used = struct.pack("<QI", 3, 0xFFFFFF7F), struct.pack("<QI", 0, 0xFFFFFFFF)
    structs = b"".join(bytes(40) + (buddy if i % 16 == 0 else used) + bytes(12) for i in range(64)) * (count // 64)
    bitmap = bytearray(b"\xff" * (count // 8))
    nothing = dict.fromkeys(PageFields.__dataclass_fields__, 0)
    no_type = dict.fromkeys(("slab", "offline", "unaccepted", "hugetlb"), 1 << 32)
    fields = PageFields(
        **nothing
        | no_type
        | {
            "stride": stride,
            "word": 8,
            "mapping_at": 24,
            "type_at": 48,
            "private_at": 40,
            "lru_mask": 1 << 5,
            "private_mask": 1 << 14,
            "buddy": 0xFFFFFF7F,
            "type_mask": 0xFFFFFFFF,
        }
    )
    classify = partial(_core.classify, structs, 0, fields.pack(), 1, bitmap)
    show("classify", len(structs), classify, lambda: "page structs of 16 GiB")
    show("bitmap_runs", len(bitmap), partial(_core.bitmap_runs, bitmap, 0, count), lambda: f"{count // 16} runs")
    data = sample.read_bytes()
    show("zero_pages", len(data), partial(_core.zero_pages, data))


def main() -> None:
    """Run all of it in a directory of its own."""
    size = int(sys.argv[1] if len(sys.argv) > 1 else 1024) << 20
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        make_sample(folder / "sample", size)
        print(f"{'':<44}{'MB/s':>9} {'MB/cpu-s':>9}")
        print(f"{size >> 20} MiB, {os.cpu_count()} cores, {subprocess.getoutput('zstd --version').strip('* ')}")
        bench_streams(folder, folder / "sample")
        bench_scattered(folder, folder / "sample")
        bench_pages(folder / "sample")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
