"""How much memory A must have free, and the window that is taken when there is less."""

import os
from pathlib import Path

import pytest

from kjump.formats.e820 import IomemResource
from kjump.hibernate import preflight
from kjump.host import procfs
from kjump.image.needs import memory_to_save
from kjump.image.threads import threads_for
from kjump.kexec.window import SIZES
from kjump.ranges import Range

MIB = 1 << 20


def _memory(monkeypatch: pytest.MonkeyPatch, available: int, *, after: int | None = None) -> list[int]:
    """Let the kernel have `available` MiB, and `after` when room was made; return what room was asked for."""
    now = {"MemAvailable": available * MIB, "MemTotal": 4096 * MIB, "SwapFree": 0}
    asked: list[int] = []

    def make_room(needed: int) -> None:
        asked.append(needed)
        now["MemAvailable"] = (available if after is None else after) * MIB

    monkeypatch.setattr(procfs, "meminfo", lambda: dict(now))
    monkeypatch.setattr(preflight, "make_room", make_room)
    monkeypatch.setattr(procfs, "free_blocks", lambda: 1000)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    return asked


@pytest.mark.parametrize(
    ("available", "after", "size"),
    [
        (4000, None, 128),
        (168, None, 128),
        (167, 167, 96),
        (100, 168, 128),
        (135, 135, 80),
        (112, 112, 80),
        (50, 60, 80),
    ],
)
def test_the_largest_window_that_leaves_a_enough(
    monkeypatch: pytest.MonkeyPatch, available: int, after: int | None, size: int
) -> None:
    asked = _memory(monkeypatch, available, after=after)
    assert preflight.window_size_that_fits() == size * MIB
    assert bool(asked) == (available < 168)


@pytest.mark.parametrize(
    ("ram", "blocks", "cpus", "more"),
    [
        (16 << 10, 100_000, 8, 0),
        (64 << 10, 524_288, 8, 30),
        (1 << 20, 10_000_000, 8, 850),
        (1 << 20, 1000, 256, 44),
        (1 << 20, 10_000_000, 256, 878),
    ],
)
def test_much_memory_in_many_pieces_and_many_cpus_take_a_larger_window(
    monkeypatch: pytest.MonkeyPatch, ram: int, blocks: int, cpus: int, more: int
) -> None:
    _memory(monkeypatch, ram)
    meminfo = {"MemAvailable": ram * MIB // 2, "MemTotal": ram * MIB, "SwapFree": 0}
    monkeypatch.setattr(procfs, "meminfo", lambda: meminfo)
    monkeypatch.setattr(procfs, "free_blocks", lambda: blocks)
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    assert preflight.window_size_that_fits() == (128 + more) * MIB
    # What the lists take, what CPUs take and the usual 128 MiB are there, and memory for some threads with them.
    lists = memory_to_save(ram * MIB, blocks)
    assert more * MIB + 16 * MIB >= lists + max(0, min(cpus, 32) - 8) * MIB
    assert threads_for(cpus, (128 + more) * MIB - lists - 64 * MIB) >= min(cpus, 4)


def test_free_blocks_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Node 0, zone      DMA      0      1      2\nNode 1, zone   Normal  67279  3  0\n"
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    assert procfs.free_blocks() == 67285


def test_what_is_missing_is_said_in_mebibytes(monkeypatch: pytest.MonkeyPatch) -> None:
    _memory(monkeypatch, 50)
    check = preflight._free_memory(SIZES[-1])
    assert not check.ok
    assert "50 MiB available, 112 MiB needed" in check.detail
    assert "free 62 MiB" in check.remedy


def test_memory_of_a_driver_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "iomem", lambda: [IomemResource(Range(MIB, 64 * MIB), "System RAM", 0)])
    assert {c.name: c for c in preflight.checks(target=None, window_size=None)}["memory of drivers"].ok
    added = IomemResource(Range(4096 * MIB, 4224 * MIB), "System RAM (virtio_mem)", 1)
    monkeypatch.setattr(procfs, "iomem", lambda: [added])
    check = {c.name: c for c in preflight.checks(target=None, window_size=None)}["memory of drivers"]
    assert not check.ok and "[0x100000000-0x107ffffff] is System RAM (virtio_mem), in all 128 MiB" in check.detail


def test_a_window_beyond_half_of_ram_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _memory(monkeypatch, 4000)
    check = preflight._free_memory(3000 * MIB)
    assert not check.ok and "at most 50% of RAM (2048 MiB)" in check.detail


def test_lists_of_cpus_are_shortened_until_that_does_not_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, statistics = tmp_path / "limit", tmp_path / "statistics"
    limit.write_text("8\n")
    statistics.write_text("")
    limits = []
    counts = iter([5000, 2000, 700, 700, 1])

    def pages_on_lists() -> int:
        limits.append(limit.read_text())
        return next(counts)

    monkeypatch.setattr(preflight, "_LISTS_LIMIT", limit)
    monkeypatch.setattr(preflight, "_STATISTICS", statistics)
    monkeypatch.setattr(preflight, "_pages_on_lists", pages_on_lists)
    preflight.give_back_free_memory()
    assert next(counts) == 1
    assert limits == ["1000000\n"] * 4
    assert limit.read_text() == "8\n"


def test_a_kernel_without_such_lists_is_let_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_LISTS_LIMIT", tmp_path / "none")
    monkeypatch.setattr(preflight, "_STATISTICS", tmp_path / "none, too")
    preflight.give_back_free_memory()
    assert not list(tmp_path.iterdir())


def test_long_lists_only_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zones = tmp_path / "zoneinfo"
    lines = ["Node 0, zone  DMA32", "  pages free 71", "  pagesets", "    cpu: 0", "              count:    900",
             "    cpu: 1", "              count:    512", "              high:     4000"]  # fmt: skip
    zones.write_text("\n".join(lines))
    monkeypatch.setattr(preflight, "_ZONES", zones)
    assert preflight._pages_on_lists() == 900
