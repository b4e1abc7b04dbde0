"""The dump engine against makedumpfile: `python bench/dump.py [--vmcore FILE] [--levels 31,17] [--runs N]`.

Both read one 4 GiB vmcore of a machine in the lab (1.4 GiB in use; made on the first run and kept in the cache),
from the page cache, and write to memory (/dev/shm), one after the other. Seconds are the best of the runs;
the second number is processor time, for machines that are busy with something else too. Ratios are makedumpfile's
seconds (processor seconds, bytes) by ours, with one thread: above 1 we are better. makedumpfile is the one on the
PATH, or what KJUMP_MAKEDUMPFILE names; methods that it was built without are left out of the comparison. With two
threads it runs once a level, with zstd (zlib if it has no zstd), and is stopped when that takes four times as long as
with one, and over 20 s: its threads wait in busy loops.

All of it takes some eight minutes on two cores that have nothing else to do, and /dev/shm needs 3 GiB.
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

from kjump.dump.opening import open_source
from kjump.dump.selection import select_level
from kjump.lab.machine.cache import cache_root
from kjump.lab.machine.kernel_source import build

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


class Failed(Exception):
    """A program failed; the text says which, and what it said."""


def run(command: list[str], out: Path, runs: int, limit: float = 600) -> Cost | None:
    """Run a program `runs` times and return the least it took; None when it took more than `limit` seconds.

    Failed when it ends with an error.
    """
    costs = []
    for _ in range(runs):
        out.unlink(missing_ok=True)
        begun = time.perf_counter()
        with tempfile.TemporaryFile() as said:
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
            memory, status, usage = watch(child, begun + limit)
            wall = time.perf_counter() - begun
            said.seek(0)
            message = said.read().decode(errors="replace")
        if memory < 0:
            return None
        if status:
            raise Failed(f"{' '.join(command)} failed: {message.strip()[-300:]}")
        costs.append(Cost(wall, usage.ru_utime + usage.ru_stime, memory, out.stat().st_size))
    return Cost(min(c.wall for c in costs), min(c.cpu for c in costs), max(c.memory for c in costs), costs[-1].size)


def watch(child: subprocess.Popen[bytes], until: float) -> tuple[int, int, resource.struct_rusage]:
    """Wait for a process; return its peak memory in KiB, its status and what it used; -1 KiB when it had to be stopped.

    ru_maxrss would not do: it begins with what this process has, from which the other was forked.
    """
    memory = 0
    while True:
        try:
            lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
            memory = max(memory, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
        except OSError:
            pass
        ended, status, usage = os.wait4(child.pid, os.WNOHANG)
        if ended:
            child.returncode = status
            return memory, status, usage
        if time.perf_counter() > until:
            child.kill()
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = status
            return -1, status, usage
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


def compare_with(level: int, core: Path, out: Path, runs: int) -> dict[str, Cost]:
    """Print what makedumpfile's methods cost, and return that for one thread."""
    command = [str(MAKEDUMPFILE), "-f", "-d", str(level)]
    peers: dict[str, Cost] = {}
    for method in enabled():
        switches = [SWITCHES[method]] if SWITCHES[method] else []
        cost = run([*command, *switches, str(core), str(out)], out, runs)
        assert cost is not None
        show(f"makedumpfile {method}", cost)
        peers[method] = cost
    if peers:
        method = next(m for m in SWITCHES if m in peers)
        limit = max(20, 4 * peers[method].wall)
        name = f"makedumpfile {method}, 2 threads"
        try:
            both = run([*command, SWITCHES[method], "--num-threads", "2", str(core), str(out)], out, 1, limit)
        except Failed as error:  # it was seen to, at its very end ("libgcc_s.so.1 must be installed"): go on without
            print(f"{name:<34}  {error}")
        else:
            if both is None:
                print(f"{name:<34}  stopped after {limit:.0f} s")
            else:
                show(name, both, peers[method])
    return peers


def compare(core: Path, level: int, folder: Path, runs: int) -> None:
    """Print what each method costs at one level."""
    print(f"\nlevel {level:<28} seconds     CPU     MiB       MB    speed    CPU   size")
    out = folder / "out"
    peers = compare_with(level, core, out, runs)
    kjump = [sys.executable, "-m", "kjump", "dump", str(core), str(out), "--force"]
    kjump += ["--level", str(level)]
    lines = [(m, f"kdump {m}", ["--format", "kdump", "--compress", m]) for m in SWITCHES]
    for method, name, more in [*lines, ("zlib", "image (against zlib)", [])]:
        for threads in (1, 2):
            cost = run([*kjump, *more, "--threads", str(threads)], out, runs)
            assert cost is not None
            show(f"kjump {name}, {threads} thread{'s' * (threads > 1)}", cost, peers.get(method))


def filter_stage(core: Path) -> None:
    """Print how long selection takes, and how long reading the page structs once."""
    with open_source(core) as source:
        best_select = best_read = 1e9
        for _ in range(5):
            begun = time.perf_counter()
            select_level(source.layout, source.present, 31)
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
    from kjump.lab.machine import vmcore

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
    parser.add_argument("--runs", type=int, default=2)
    given = parser.parse_args()
    core = given.vmcore or find_vmcore()
    with core.open("rb") as file:  # warm the page cache
        while file.read(1 << 24):
            pass
    with tempfile.TemporaryDirectory(prefix="kjump-bench-", dir="/dev/shm") as folder:
        filter_stage(core)
        try:
            for level in map(int, given.levels.split(",")):
                compare(core, level, Path(folder), given.runs)
        except Failed as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
