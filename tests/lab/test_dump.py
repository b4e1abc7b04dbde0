"""The dump engine on vmcores of real kernels, held to makedumpfile, crash and drgn.

makedumpfile is the one on the PATH, or what KJUMP_MAKEDUMPFILE names.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kjump import _core, _dump
from kjump.dump import bitmaps
from kjump.dump.create import Format, Request, dump
from kjump.dump.opening import open_source
from kjump.dump.selection import select_level
from kjump.dump.source import Source
from kjump.formats.kdump import Method
from kjump.lab.machine import kernel_source as kernels
from kjump.lab.machine import vmcore

MAKEDUMPFILE = os.environ.get("KJUMP_MAKEDUMPFILE") or shutil.which("makedumpfile")
CPUS = {4: "max,la57=off", 5: "max"}
MEMORY, FILL = 192 << 20, 64 << 20
VERSION = re.compile(r"version (\d+)\.(\d+)\.(\d+)")

needs_makedumpfile = pytest.mark.skipif(
    MAKEDUMPFILE is None, reason="no makedumpfile: install it, or say where it is in KJUMP_MAKEDUMPFILE"
)


def makedumpfile(*arguments: object) -> None:
    assert MAKEDUMPFILE is not None
    done = subprocess.run([MAKEDUMPFILE, "-f", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]


def knows_huge_pages(version: str) -> bool:
    """Whether this makedumpfile knows how the kernel marks pages of hugetlbfs; before 1.7.6 not on 6.12."""
    assert MAKEDUMPFILE is not None
    found = VERSION.search(subprocess.run([MAKEDUMPFILE, "-v"], capture_output=True, text=True, check=False).stdout)
    return version == "6.1" or (found is not None and tuple(map(int, found.groups())) >= (1, 7, 6))


@pytest.fixture(scope="module", params=[(v, n) for v in ("6.1", "6.12") for n in CPUS], ids=lambda p: f"{p[0]}-{p[1]}")
def core(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The vmcore of a kernel with 4 or 5 levels of page tables."""
    version, levels = request.param
    path = tmp_path_factory.mktemp("vmcore") / "vmcore"
    huge = 3 if MAKEDUMPFILE is None or knows_huge_pages(version) else 0
    vmcore.make(kernels.build(version), path, memory=MEMORY, fill=FILL, cpu=CPUS[levels], huge_pages=huge)
    with open_source(path) as source:
        assert source.info.number("pgtable_l5_enabled") == (levels == 5)
    yield path
    path.unlink()


def without_zeros(source: Source, keep: bytearray) -> bytearray:
    """Return `keep` without the frames whose pages are zeros."""
    left = bytearray(keep)
    for start in range(0, len(keep) * 8, 4096):
        end = min(start + 4096, len(keep) * 8)
        _dump.drop(left, start, end, _core.zero_pages(source.read_pages(keep, start, end)))
    return left


@needs_makedumpfile
def test_the_same_frames_are_left_out_at_every_level(core: Path, tmp_path: Path) -> None:
    with open_source(core) as source:
        for level in range(32):
            ours = select_level(source.layout, source.present, level).keep
            makedumpfile("-d", level, core, tmp_path / "theirs")
            with open_source(tmp_path / "theirs") as theirs:
                kept = theirs.present
                if level & 1:
                    ours, kept = without_zeros(source, ours), without_zeros(theirs, kept)
                end = len(ours) * 8
                assert bitmaps.runs(ours, end) == bitmaps.runs(kept, len(kept) * 8), f"level {level}"


@needs_makedumpfile
def test_makedumpfile_reads_what_we_write(core: Path, tmp_path: Path) -> None:
    makedumpfile("--dump-dmesg", core, tmp_path / "log")
    makedumpfile("-d", 31, core, tmp_path / "direct")
    # ELF at level 0: of its own ELF core of level 1, too, makedumpfile keeps more at 31 than of the vmcore.
    for form, method, flat, level in (
        (Format.ELF, Method.NONE, False, 0),
        (Format.KDUMP, Method.ZLIB, False, 1),
        (Format.KDUMP, Method.LZO, True, 1),
    ):
        out, refiltered = tmp_path / "out", tmp_path / "refiltered"
        with open_source(core) as source:
            dump(source, Request((str(out),), level=level, format=form, method=method, flattened=flat, force=True))
        if flat:
            with out.open("rb") as stream:
                subprocess.run([str(MAKEDUMPFILE), "-f", "-R", str(refiltered)], stdin=stream, check=True)
            refiltered.replace(out)
        makedumpfile("--dump-dmesg", out, tmp_path / "our-log")
        assert (tmp_path / "our-log").read_bytes() == (tmp_path / "log").read_bytes()
        makedumpfile("-d", 31, out, refiltered)
        with open_source(refiltered) as ours, open_source(tmp_path / "direct") as theirs:
            same = without_zeros(ours, ours.present), without_zeros(theirs, theirs.present)
            assert same[0] == same[1]
            for frame, _ in _core.bitmap_runs(same[0], 0, len(same[0]) * 8):
                assert ours.read(frame << 12, 4096) == theirs.read(frame << 12, 4096)


@needs_makedumpfile
def test_split_files_are_reassembled_by_makedumpfile(core: Path, tmp_path: Path) -> None:
    names = [str(tmp_path / f"part{i}") for i in range(3)]
    with open_source(core) as source:
        dump(source, Request(tuple(names), level=16, format=Format.KDUMP, method=Method.ZLIB))
        makedumpfile("--reassemble", *names, tmp_path / "whole")
        keep = select_level(source.layout, source.present, 16).keep
        with open_source(tmp_path / "whole") as whole:
            assert bitmaps.runs(whole.present, len(whole.present) * 8) == bitmaps.runs(keep, len(keep) * 8)
            for first, last in _core.bitmap_runs(keep, 0, len(keep) * 8):
                size = (last - first) << 12
                assert whole.read(first << 12, size) == source.read(first << 12, size)


def test_the_log_is_the_consoles(core: Path) -> None:
    from kjump.dump import dmesg

    with open_source(core) as source:
        lines = [record.text for record in dmesg.records(source.layout)]
    assert lines[0].startswith("Linux version")
    # Not the last line always: the kernel may have something to say (which clock it takes) before it is dumped.
    assert lines.count("kjump lab vmcore: memory is filled") == 1


# --- crash and drgn, with a kernel that has debugging information ---------------------------------------------


@pytest.fixture(scope="module", params=["6.1", "6.12"])
def debug(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Path]]:
    """Version, vmlinux and vmcore of a kernel with debugging information; it takes long to build."""
    built = kernels.cached(request.param, debug_info=True)
    if built is None:
        how = f"kjump lab kernel build --version {request.param} --debug-info"
        pytest.skip(f"no debugging information for {request.param}: run `{how}` to force this")
    path = tmp_path_factory.mktemp("debug") / "vmcore"
    vmcore.make(built, path, memory=MEMORY, fill=FILL)
    assert built.vmlinux is not None
    yield request.param, built.vmlinux, path
    path.unlink()


def crash(vmlinux: Path, core: Path, commands: str) -> list[str]:
    """Return what crash prints, less what names the file."""
    script = core.with_name("commands")
    script.write_text(commands + "\nquit\n")
    command = ["crash", "--kaslr", "auto", "-s", "-i", str(script), str(vmlinux), str(core)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    return [line for line in done.stdout.splitlines() if "DUMPFILE" not in line]


_COMMANDS = "ps\nlog\nbt\nsys"


@pytest.mark.skipif(shutil.which("crash") is None, reason="no crash: apt install crash to force this")
def test_crash_says_the_same_of_every_format(tmp_path: Path) -> None:
    # Debian's crash 8.0.2 is older than 6.12, and too old to find a 6.1.y's sleeping tasks by their PIDs (there, too,
    # `struct pid` ends in a flexible array now): what it lists, and can show the stack of, is what the CPUs are at.
    built = kernels.cached("6.1", debug_info=True)
    if built is None or built.vmlinux is None:
        pytest.skip(
            "no debugging information for 6.1: run `kjump lab kernel build --version 6.1 --debug-info` to force this"
        )
    core = tmp_path / "vmcore"
    vmcore.make(built, core, memory=MEMORY, fill=FILL, crash=True)
    wanted = crash(built.vmlinux, core, _COMMANDS)
    for pattern in (
        r"^> +1 +0 +\d +\w+ +RU .* init$",
        r"kjump lab vmcore: memory is filled",
        r"^ #0 \[\w+\] panic at",
        r"^ #2 \[\w+\] write_sysrq_trigger at",
        r"PANIC: .*sysrq triggered crash",
    ):
        assert any(re.search(pattern, line) for line in wanted), pattern
    for number, (form, method) in enumerate(
        [(Format.ELF, Method.NONE), *((Format.KDUMP, m) for m in (Method.ZLIB, Method.LZO, Method.SNAPPY, Method.ZSTD))]
    ):
        out = tmp_path / f"out{number}"
        with open_source(core) as source:
            dump(source, Request((str(out),), level=31, format=form, method=method))
        assert crash(built.vmlinux, out, _COMMANDS) == wanted, (form, method)


TASKS = """
from drgn.helpers.linux.pid import for_each_task
print(sorted((t.pid.value_(), t.comm.string_().decode()) for t in for_each_task(prog)))
"""


@pytest.mark.skipif(importlib.util.find_spec("drgn") is None, reason="no drgn: pip install drgn to force this")
def test_drgn_lists_the_same_tasks_of_every_format(debug: tuple[str, Path, Path], tmp_path: Path) -> None:
    _, vmlinux, core = debug
    script = tmp_path / "tasks.py"
    script.write_text(TASKS)
    for path, form in ((tmp_path / "e", Format.ELF), (tmp_path / "k", Format.KDUMP), (tmp_path / "i", Format.IMAGE)):
        with open_source(core) as source:
            dump(source, Request((str(path),), level=31, format=form))
    own = [sys.executable, "-m", "kjump.dump.drgn", str(vmlinux)]
    theirs = [sys.executable, "-m", "drgn", "-q", "-s", str(vmlinux), "-c"]
    seen = set()
    for command in (*([*theirs, str(p)] for p in (core, tmp_path / "e", tmp_path / "k")), [*own, str(tmp_path / "i")]):
        done = subprocess.run([*command, str(script)], capture_output=True, text=True, check=True)
        seen.add(done.stdout)
    (only,) = seen
    assert "(1, 'init')" in only
    assert "'dd'" in only
