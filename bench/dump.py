"""The dump engine against makedumpfile: `python bench/dump.py [--vmcore FILE] [--levels 31,17] [--runs N]`.

Both read one 4 GiB vmcore of a machine in the lab (1.4 GiB in use; made on the first run and kept in the cache),
from the page cache, and write to memory (/dev/shm), one after the other. Seconds are the best of the runs;
the second number is processor time, for machines that are busy with something else too. Ratios are makedumpfile's
seconds (processor seconds, bytes) by ours: above 1 we are better. makedumpfile is the one on the PATH, or what
KJUMP_MAKEDUMPFILE names; methods that it was built without are left out of the comparison.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from kjump.dump import pages
from kjump.dump.sources import open_source
from kjump.lab.kernel import build, cache_root

MEMORY, FILL = 4 << 30, 1400 << 20
SWITCHES = {"zstd": "-z", "zlib": "-c", "lzo": "-l", "snappy": "-p", "none": ""}
MAKEDUMPFILE = os.environ.get("KJUMP_MAKEDUMPFILE") or shutil.which("makedumpfile")


@dataclass(frozen=True)
class Cost:
    """What a run took: seconds, processor seconds, peak memory in KiB, bytes written."""

    wall: float
    cpu: float
    memory: int
    size: int


def run(command: list[str], out: Path, runs: int) -> Cost:
    """Run a program `runs` times and return the least it took."""
    costs = []
    for _ in range(runs):
        out.unlink(missing_ok=True)
        begun = time.perf_counter()
        with tempfile.TemporaryFile() as said:
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
            memory, status, usage = watch(child.pid)
            wall = time.perf_counter() - begun
            said.seek(0)
            message = said.read().decode(errors="replace")
        if status:
            sys.exit(f"{' '.join(command)} failed: {message[-300:]}")
        costs.append(Cost(wall, usage.ru_utime + usage.ru_stime, memory, out.stat().st_size))
    return Cost(min(c.wall for c in costs), min(c.cpu for c in costs), max(c.memory for c in costs), costs[-1].size)


def watch(pid: int) -> tuple[int, int, resource.struct_rusage]:
    """Wait for a process; return its peak memory in KiB, its status and what it used.

    ru_maxrss would not do: it begins with what this process has, from which the other was forked.
    """
    memory = 0
    while True:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            memory = max(memory, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
        except OSError:
            pass
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            return memory, status, usage
        time.sleep(0.005)


def show(name: str, cost: Cost, peer: Cost | None = None) -> None:
    """Print one line; with a peer, the ratios to it."""
    line = f"{name:<34}{cost.wall:8.2f}{cost.cpu:8.2f}{cost.memory / 1024:8.0f}{cost.size / 1e6:9.1f}"
    if peer is not None:
        line += f"   {peer.wall / cost.wall:5.2f}  {peer.cpu / cost.cpu:5.2f}  {peer.size / cost.size:5.2f}"
    print(line, flush=True)


def enabled() -> list[str]:
    """Return the methods that makedumpfile was built with."""
    if MAKEDUMPFILE is None:
        return []
    told = subprocess.run([MAKEDUMPFILE, "-v"], capture_output=True, text=True, check=False).stdout
    print(told.splitlines()[0])
    return [m for m in SWITCHES if m in ("zlib", "none") or f"{m}\tenabled" in told]


def compare(core: Path, level: int, folder: Path, runs: int, peer_threads: int) -> None:
    """Print what each method costs at one level."""
    print(f"\nlevel {level:<28} seconds     CPU     MiB       MB    speed    CPU   size")
    out = folder / "out"
    kjump = [sys.executable, "-c", "from kjump.cli import main; main()", "dump", str(core), str(out), "--force"]
    peers: dict[str, Cost] = {}
    for method in enabled():
        switches = [SWITCHES[method]] if SWITCHES[method] else []
        for threads in ([], ["--num-threads", "2"])[:peer_threads]:
            command = [str(MAKEDUMPFILE), "-f", *switches, "-d", str(level), *threads, str(core), str(out)]
            cost = run(command, out, 1 if threads else runs)
            show(f"makedumpfile {method}{' 2 threads' if threads else ''}", cost)
            peers.setdefault(method, cost)
    for method in SWITCHES:
        for threads in (1, 2):
            more = ["--level", str(level), "--threads", str(threads), "--format", "kdump", "--compress", method]
            name = f"kjump kdump {method}, {threads} thread{'s' * (threads > 1)}"
            show(name, run([*kjump, *more], out, runs), peers.get(method))
    for threads in (1, 2):
        more = ["--level", str(level), "--threads", str(threads)]
        show(f"kjump image, {threads} (against zlib)", run([*kjump, *more], out, runs), peers.get("zlib"))


def filter_stage(core: Path) -> None:
    """Print how long selection takes, and how long reading the page structs once."""
    with open_source(core) as source:
        best_select = best_read = 1e9
        for _ in range(5):
            begun = time.perf_counter()
            pages.select_level(source.layout, source.present, 31)
            best_select = min(best_select, time.perf_counter() - begun)
            begun = time.perf_counter()
            size = 0
            for part in source.layout.page_structs():
                size += len(source.layout.read(part.linear, part.count * 64))
            best_read = min(best_read, time.perf_counter() - begun)
    print(
        f"\nfilter stage {best_select * 1e3:.1f} ms; reading {size >> 20} MiB of page structs {best_read * 1e3:.1f} ms"
        f" ({best_select / best_read:.2f} times)"
    )


def find_vmcore() -> Path:
    """Return the vmcore to measure with, made when it is not there."""
    from kjump.lab import vmcore

    path = cache_root() / "bench-vmcore"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        vmcore.make(build("6.12"), path, memory=MEMORY, fill=FILL)
    return path


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--vmcore", type=Path)
    parser.add_argument("--levels", default="31,17")
    parser.add_argument("--one-thread", action="store_true", help="do not run makedumpfile with two threads")
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    core = given.vmcore or find_vmcore()
    with core.open("rb") as file:  # warm the page cache
        while file.read(1 << 24):
            pass
    with tempfile.TemporaryDirectory(prefix="kjump-bench-", dir="/dev/shm") as folder:
        filter_stage(core)
        for level in map(int, given.levels.split(",")):
            compare(core, level, Path(folder), given.runs, 1 if given.one_thread else 2)


if __name__ == "__main__":
    main()
