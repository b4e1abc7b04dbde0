"""The dump engine on an i386 kernel with PAE, held to what that kernel itself says of its pages.

makedumpfile built for x86_64 does not read cores of i386, so the judge is /proc/kpageflags of the same machine.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kjump import _core
from kjump.dump import bitmaps, dmesg
from kjump.dump.create import Format, Request, dump
from kjump.dump.opening import open_source
from kjump.dump.selection import select_level
from kjump.formats import cpio
from kjump.formats.kdump import Method
from kjump.lab.machine import kernel_source as kernels
from kjump.lab.machine import vmcore
from kjump.lab.machine.disks import make_disk
from kjump.lab.machine.qemu import VirtualMachine
from kjump.lab.machine.qemu_config import VirtualMachineConfig
from kjump.ranges import RangeSet

MEMORY = 1100 << 20
"""More than the 896 MiB that the kernel has mapped: the rest is high memory."""

# Documentation/admin-guide/mm/pagemap.rst; the last is of include/linux/kernel-page-flags.h.
LRU, SLAB, BUDDY, ANON, HUGE, NOPAGE, PRIVATE = 5, 7, 10, 12, 17, 20, 35


@dataclass(frozen=True)
class Judged:
    """A vmcore, and of each page frame the flags that the kernel reported just before."""

    core: Path
    flags: tuple[int, ...]

    def frames(self, level: int) -> set[int]:
        """Return the frames that `level` (2 to 31, even) should leave out, after the kernel's own words."""
        return {frame for frame, flags in enumerate(self.flags) if flags >> NOPAGE & 1 or left_out(flags, level)}


def left_out(flags: int, level: int) -> bool:
    """Say whether a page with these /proc/kpageflags is left out at `level`."""

    def has(bit: int) -> bool:
        return bool(flags >> bit & 1)

    cache = has(LRU) and not has(ANON)
    return (
        (bool(level & 16) and has(BUDDY))
        or (bool(level & 8) and (has(ANON) or has(HUGE)))
        or (bool(level & 4) and cache)
        or (bool(level & 2) and cache and not has(PRIVATE))
    )


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judged]:
    """The vmcore of an i386 machine with its memory filled."""
    built = (kernels.cached(version, arch="i386") for version in kernels.available())
    kernel = next(filter(None, built), None)
    if kernel is None:
        pytest.skip("no i386 kernel: run `make kernel-i386` to force this")
    folder = tmp_path_factory.mktemp("i386")
    core, data, flags = folder / "vmcore", folder / "data.img", folder / "flags.img"
    vmcore.write_data(data, 24 << 20)
    make_disk(flags, 16 << 20)
    config = VirtualMachineConfig(
        kernel=kernel.image,
        initrd=initramfs(folder),
        command_line="console=ttyS0 panic=-1 loglevel=4",
        memory=MEMORY,
        disks=(data, flags),
        extra=("-device", "vmcoreinfo"),
    )
    with VirtualMachine(config, log=folder / "console.log") as machine:
        machine.guest.event("filled", timeout=120)
        machine.execute("stop")
        machine.execute("dump-guest-memory", paging=False, protocol=f"file:{core}")
    words = flags.read_bytes()
    yield Judged(core, struct.unpack(f"<{MEMORY >> 12}Q", words[: MEMORY >> 9]))
    core.unlink()


def initramfs(folder: Path) -> Path:
    """Return an initramfs whose init fills memory."""
    init, archive = folder / "init", folder / "initrd"
    source = Path(__file__).with_name("init32.c")
    build = ["gcc", "-m32", "-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-pic", "-no-pie"]
    subprocess.run([*build, "-fno-stack-protector", "-o", str(init), str(source)], check=True)
    folders = [cpio.directory(name) for name in ("proc", "dev", "tmp")]
    console = cpio.char_device("dev/console", 5, 1)
    archive.write_bytes(cpio.write([*folders, console, cpio.regular("init", init.read_bytes(), 0o755)]))
    return archive


def frames_of(ranges: RangeSet) -> set[int]:
    return {frame for item in ranges for frame in range(item.start, item.end)}


def test_levels_agree_with_the_kernel(judged: Judged) -> None:
    with open_source(judged.core) as source:
        assert source.word == 4
        present = frames_of(bitmaps.runs(source.present, len(source.present) * 8))
        assert max(present) > (1 << 30) >> 12
        for level in range(2, 32, 2):
            selection = select_level(source.layout, source.present, level)
            ours = present - frames_of(bitmaps.runs(selection.keep, selection.end))
            theirs = judged.frames(level) & present
            # The kernel went on for a moment after it had told: its per-CPU lists of free pages move.
            assert len(ours ^ theirs) < 200, (level, len(ours - theirs), len(theirs - ours))
            if level & 8:
                assert len(ours) >= 8192  # the process
            if level & 16:
                assert len(ours) > len(present) // 2


def test_formats_hold_the_same_pages(judged: Judged, tmp_path: Path) -> None:
    with open_source(judged.core) as source:
        keep = select_level(source.layout, source.present, 30).keep
        log = [record.text for record in dmesg.records(source.layout)]
        assert log[0].startswith("Linux version 6.1")
        for form, method in ((Format.ELF, Method.NONE), (Format.KDUMP, Method.LZO), (Format.IMAGE, Method.ZSTD)):
            out = tmp_path / form.value
            dump(source, Request((str(out),), level=30, format=form, method=method, threads=2))
            with open_source(out) as ours:
                assert ours.word == 4
                assert [record.text for record in dmesg.records(ours.layout)] == log
                for first, last in _core.bitmap_runs(keep, 0, len(keep) * 8):
                    at, size = first << 12, (last - first) << 12
                    assert ours.read(at, size) == source.read(at, size)
