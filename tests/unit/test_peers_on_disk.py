"""Resident peers in a file: what is written, what is loaded again, and what is refused."""

import contextlib
import dataclasses
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump import _core
from kjump.errors import HostError, UsageError
from kjump.gates import GATE_ENTRY
from kjump.kexec.plan import ARCH_X86_64, PRESERVE_CONTEXT, SEGMENT_MAX, Plan
from kjump.memory import PAGE_SIZE, BytesMemory
from kjump.peers import on_disk, prefetch, registry
from kjump.peers.on_disk import Stored, Unpacking, cut, refuse_other_file, store
from kjump.peers.prefetch import unpack_ahead
from kjump.ranges import Range

MIB = 1 << 20
LOW, WINDOW = Range(0x10000, 0x20000), Range(16 * MIB, 32 * MIB)


class Memory:
    """Physical memory of two places."""

    def __init__(self) -> None:
        self.parts = {place: bytearray(place.size) for place in (LOW, WINDOW)}

    @property
    def ranges(self) -> None:
        raise AssertionError("nobody asks")

    def read(self, address: int, length: int) -> bytes:
        for place, data in self.parts.items():
            if place.covers(Range.of_size(address, length)):
                return BytesMemory(data, place.start).read(address, length)
        raise AssertionError(f"{address:#x}")


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    made = Memory()
    monkeypatch.setattr(on_disk.kernel_memory, "Kcore", contextlib.nullcontext)
    monkeypatch.setattr(on_disk.post_mortem, "peer_memory", lambda _: made)
    return made


def loaded(stored: Stored) -> Memory:
    """What the segments of the plan make of memory that was something else."""
    found = Memory()
    for place, data in found.parts.items():
        data[:] = b"\xee" * place.size
        for segment in stored.plan().segments:
            if place.covers(segment.range):
                at = segment.address - place.start
                data[at : at + segment.memory_size] = segment.data.ljust(segment.memory_size, b"\0")
    return found


def data_of(plan: Plan) -> bytes:
    return b"".join(segment.data for segment in plan.segments)


def _state(stored: Stored) -> registry.State:
    return registry.State(registry.boot_id(), "00" * 16, 1, 2, {"kexec_image": 3}, stored=stored)


def test_a_peer_is_loaded_as_it_was_stored(memory: Memory, tmp_path: Path) -> None:
    for page in (0, 5, 300, 1000, 1001, 4095):
        at = page * PAGE_SIZE
        memory.parts[WINDOW][at : at + PAGE_SIZE] = page.to_bytes(2, "little") * (PAGE_SIZE // 2)
    memory.parts[WINDOW][: 3 * PAGE_SIZE] = b"k" * (3 * PAGE_SIZE)
    path = tmp_path / "peer"
    stored = store(path, [WINDOW, LOW], WINDOW.start)
    assert path.stat().st_size == stored.size < 4096 and path.stat().st_mode & 0o777 == 0o600
    assert loaded(stored).parts == memory.parts
    plan = stored.plan()
    assert (plan.entry, plan.flags) == (WINDOW.start + GATE_ENTRY, ARCH_X86_64 | PRESERVE_CONTEXT)
    assert plan.data_size < 8 * MIB, "gaps of zeros are left out"
    assert [p.name for p in tmp_path.iterdir()] == ["peer"]


def test_what_is_remembered_is_what_was_stored(memory: Memory, tmp_path: Path) -> None:
    memory.parts[LOW][7] = 1
    stored = store(tmp_path / "peer", [WINDOW, LOW], WINDOW.start)
    whole = _state(stored)
    assert registry.decode(registry.encode(whole)) == whole
    assert registry.decode(registry.encode(dataclasses.replace(whole, stored=None))).stored is None
    with pytest.raises(HostError, match="damaged: `kjump drop` clears it"):
        registry.decode(registry.encode(whole).replace('"entry"', '"exit"'))
    symbols: Any
    for symbols in ({}, {"kexec_image": 0}, {"kexec_image": "a"}):
        with pytest.raises(HostError, match="damaged: `kjump drop` clears it"):
            registry.decode(registry.encode(dataclasses.replace(whole, symbols=symbols)))


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_file_is_not_loaded(at: int, change: int) -> None:
    data = bytes(i * i % 251 for i in range(3 * PAGE_SIZE))
    frame = bytearray(_core.compress_bytes(data, -2))
    checksum = int.from_bytes(frame[-4:], "little")
    assert _core.decompress_frame(frame, len(data), checksum) == data
    frame[at % len(frame)] ^= change
    with contextlib.suppress(_core.Damaged):
        # A bit that decides nothing may change; what comes out may not.
        assert _core.decompress_frame(frame, len(data), checksum) == data


def test_another_file_or_other_devices_are_refused(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.parts[WINDOW][:] = bytes(range(256)) * (WINDOW.size // 256)
    path = tmp_path / "peer"
    earlier = store(path, [WINDOW], WINDOW.start)
    memory.parts[WINDOW][100] ^= 1
    stored = store(path, [WINDOW], WINDOW.start)
    assert stored.is_good() and stored.plan()
    with pytest.raises(HostError, match="begin anew"):
        earlier.plan()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(HostError, match="drop it, and begin anew"):
        stored.plan()
    path.write_bytes(content[:-1])
    assert not stored.is_good()
    path.unlink()
    assert not stored.is_good()
    stored = store(path, [WINDOW], WINDOW.start)
    device = tmp_path / "pci" / "0000:00:01.0"
    device.mkdir(parents=True)
    for name in ("vendor", "device", "resource"):
        (device / name).write_text("0x1\n")
    monkeypatch.setattr(on_disk, "_PCI", device.parent)
    assert not stored.is_good()
    with pytest.raises(HostError, match="devices have changed"):
        stored.plan()


def test_what_is_unpacked_ahead_is_what_is_loaded(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.parts[LOW][5] = 3
    stored = store(tmp_path / "peer", [WINDOW, LOW], WINDOW.start)
    (tmp_path / "peers.json").write_text(registry.encode(_state(stored)))
    available = stored.memory + stored.size + (64 << 20)
    for short in (0, 1):
        monkeypatch.setattr(prefetch.procfs, "meminfo", lambda short=short: {"MemAvailable": available - short})
        assert (unpack_ahead(tmp_path) is None) == bool(short)
    monkeypatch.setattr(prefetch.procfs, "meminfo", lambda: {"MemAvailable": available})
    begun = unpack_ahead(tmp_path)
    assert begun is not None and begun.stored == stored
    with monkeypatch.context() as patch:
        patch.setattr(on_disk, "Unpacking", None)  # nothing is unpacked again
        assert data_of(stored.plan(begun)) == memory.parts[LOW][:PAGE_SIZE]
    begun = unpack_ahead(tmp_path)
    assert begun is not None and begun.result()
    memory.parts[LOW][5] = 4
    other = store(tmp_path / "peer", [WINDOW, LOW], WINDOW.start)
    assert data_of(other.plan(begun)) == memory.parts[LOW][:PAGE_SIZE], "not what the file was before"
    (tmp_path / "peers.json").write_text("{")
    assert unpack_ahead(tmp_path) is None and unpack_ahead(tmp_path / "none") is None


def test_what_was_begun_can_be_dropped(memory: Memory, tmp_path: Path) -> None:
    memory.parts[WINDOW][:] = bytes(range(256)) * (WINDOW.size // 256)
    begun = Unpacking(store(tmp_path / "peer", [WINDOW], WINDOW.start), 1)
    begun.drop()
    assert begun.drop() == []


def test_a_file_of_somebody_else_is_not_written_over(memory: Memory, tmp_path: Path) -> None:
    path = tmp_path / "peer"
    refuse_other_file(path)
    store(path, [LOW], LOW.start)
    refuse_other_file(path)
    path.write_bytes(b"a letter")
    with pytest.raises(UsageError, match="name another file"):
        refuse_other_file(path)
    with pytest.raises(UsageError, match="Is a directory"):
        refuse_other_file(tmp_path)
    with pytest.raises(HostError, match=r"cannot write .*: No such file or directory"):
        store(tmp_path / "none" / "peer", [LOW], LOW.start)


def _gap_and_run() -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(1, 90), st.integers(1, 9))


@given(st.lists(st.lists(_gap_and_run(), max_size=25), min_size=1, max_size=4), st.integers(4, SEGMENT_MAX))
def test_cuts_cover_the_places_and_all_that_is_used(places: list[list[tuple[int, int]]], most: int) -> None:
    used, at = [], 0
    for runs in places:
        start, found = at, []
        for gap, size in runs:
            found.append(Range(at + gap, at + gap + size))
            at += gap + size
        at += 7
        used.append((Range(start, at), found))
    segments = cut(used, most)
    assert len(segments) <= most
    assert segments[0][0].start == 0 and segments[-1][0].end == at
    assert all(before.end == after.start for (before, _), (after, _) in pairwise(segments))
    for place, inner in used:
        inside = [(s, size) for s, size in segments if place.covers(s)]
        assert sum(s.size for s, _ in inside) == place.size
        for run in inner:
            assert any(Range.of_size(s.start, size).covers(run) for s, size in inside if size)
    if sum(max(0, len(runs) - 1) for _, runs in used) <= most - len(used):
        wasted = sum(size for _, size in segments) - sum(r.size for _, runs in used for r in runs)
        assert wasted == sum(runs[0].start - place.start for place, runs in used if runs)


HELD = """
import os
from kjump import _core
from kjump.host.libc import libc
from kjump.peers.on_disk import _HEADER, Part, Stored, Unpacking

def held():
    libc().malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * 4096

data = os.urandom(1 << 20) + b"a" * (3 << 20)
frame = _core.compress_bytes(data, -2)
parts = [Part(0, len(data), len(data), len(frame), int.from_bytes(frame[-4:], "little"))] * 16
bytes(bytearray(24 << 20))  # what is freed in pieces of such a size the C library keeps from then on
with open("peers", "wb") as file:
    file.write(_HEADER + frame * len(parts))
stored = Stored("peers", 0, "", tuple(parts))
before = held()
for _ in range(2):
    assert Unpacking(stored, 1).result() == [data] * len(parts)
print(held() - before)
"""


@pytest.mark.skipif("KJUMP_NATIVE" in os.environ, reason="the sanitizer's allocator gives nothing back")
def test_what_was_unpacked_is_given_back(tmp_path: Path) -> None:
    """It would be saved with the rest of A, which tells the C library to trim its heap before it jumps."""
    done = subprocess.run([sys.executable, "-c", HELD], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8 * MIB, "of 64 MiB"
