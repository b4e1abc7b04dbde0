"""Looking at a parked A from B, and what a save makes of it: on the memory of a kernel built by hand."""

import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tinykernel

from kjump import _core
from kjump.errors import FormatError, HostError, UsageError
from kjump.gates import Gate
from kjump.host import root
from kjump.image import compression
from kjump.image.dump_source import ParkedSource
from kjump.image.save import open_parked
from kjump.init.jobs import look
from kjump.kexec import mailbox
from kjump.kexec.kimage import IND_DESTINATION, IND_DONE, IND_INDIRECTION, IND_SOURCE
from kjump.memory import PAGE_SIZE

LIST, SOURCE, DESTINATION = 400, 410, 420
"""Frames: of the indirection list, of the page that keeps the contents of the last, which B has."""
HOLE = 300


@pytest.fixture
def vmcore(tmp_path: Path) -> Iterator[bytes]:
    """Let /proc/vmcore be that of a parked A; give A's memory as A sees it."""
    (tmp_path / "proc").mkdir()
    path = tmp_path / "proc/vmcore"
    memory = bytearray(tinykernel.write_vmcore(path))
    words = [DESTINATION * PAGE_SIZE | IND_DESTINATION, SOURCE * PAGE_SIZE | IND_SOURCE, IND_DONE]
    raw, pages = bytearray(path.read_bytes()), random.Random(3).randbytes(PAGE_SIZE)
    head = len(raw) - len(memory) + PAGE_SIZE

    def put(frame: int, data: bytes) -> None:
        at = head + (frame - 1) * PAGE_SIZE  # one frame is missing
        raw[at : at + len(data)] = data

    listed = b"".join(word.to_bytes(8, "little") for word in words)
    put(LIST, listed)
    put(SOURCE, pages)
    path.write_bytes(raw)
    memory[LIST * PAGE_SIZE : LIST * PAGE_SIZE + len(listed)] = listed
    memory[DESTINATION * PAGE_SIZE : (DESTINATION + 1) * PAGE_SIZE] = pages
    with root.below(tmp_path):
        yield bytes(memory)


@pytest.fixture
def parked(vmcore: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Let this process be in B, which was given a job."""
    (tmp_path / "kjump").mkdir()
    (tmp_path / "proc").mkdir(exist_ok=True)
    (tmp_path / "proc/meminfo").write_text("MemAvailable:    1048576 kB\n")
    (tmp_path / "kjump/job.json").write_text(json.dumps({"gate": 0x7FF0000}))
    box = SimpleNamespace(head=LIST * PAGE_SIZE | IND_INDIRECTION)
    monkeypatch.setattr(look, "read_physical", lambda address, length: Gate(mailbox=0x5000, cookie=bytes(16)).pack())
    monkeypatch.setattr(mailbox.PeerMailbox, "at_physical", lambda address, cookie: box)
    return vmcore


def test_a_parked_system_is_read_as_it_sees_itself(vmcore: bytes) -> None:
    parked = open_parked(LIST * PAGE_SIZE | IND_INDIRECTION)
    with ParkedSource(parked) as source:
        at = DESTINATION * PAGE_SIZE
        assert source.read(at, PAGE_SIZE) == vmcore[at : at + PAGE_SIZE]
        assert source.read(at - 8, 16) == vmcore[at - 8 : at + 8]
        present = [bool(source.present[f // 8] >> f % 8 & 1) for f in range(tinykernel.FRAMES)]
        assert [f for f, there in enumerate(present) if not there] == [HOLE, SOURCE]
        with pytest.raises(FormatError):
            source.read(HOLE * PAGE_SIZE, 8)
        fd = parked.raw.fd
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_info_says_what_it_is(parked: bytes) -> None:
    found = json.loads(look.look(["info", "--json"]))
    assert found["pages"] == tinykernel.FRAMES - 2
    text = look.look(["info"])
    assert "6.12.0-tiny" in text and f"{tinykernel.FRAMES - 2:>10} pages" in text


def test_a_dump_is_written_of_it(parked: bytes, tmp_path: Path) -> None:
    there = tmp_path / "dump"
    said = look.look(["dump", "--level", "0", "--format", "elf", str(there)])
    kept = int(said.split()[0])
    assert said.startswith(f"{kept} of {tinykernel.FRAMES - 2} pages take {there.stat().st_size} bytes in {there}")
    assert tinykernel.FRAMES // 2 < kept < tinykernel.FRAMES - 2  # those of zeros are no part of it
    at = DESTINATION * PAGE_SIZE
    assert parked[at : at + PAGE_SIZE] in there.read_bytes()
    with pytest.raises(UsageError, match="usage"):
        look.look(["dump", "--level", "x", str(there)])
    with pytest.raises(UsageError, match="usage"):
        look.look(["dump"])


def test_what_is_not_in_the_initramfs_is_said(parked: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HostError, match="build it with `kjump initramfs build --with-dump`"):
        look.look(["dump", "there"])
    with pytest.raises(HostError, match="drgn is not in this initramfs"):
        look.look(["drgn"])


def test_a_script_is_run_in_drgn(parked: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    def program(source: Any, *vmlinux: str) -> str:
        opened.append((source.kind, vmlinux))
        source.close()
        return "the program"

    monkeypatch.setitem(sys.modules, "kjump.dump.drgn", SimpleNamespace(program=program))
    monkeypatch.setattr(look.importlib.util, "find_spec", lambda name: True)
    script = tmp_path / "script.py"
    script.write_text(f"open({str(tmp_path / 'said')!r}, 'w').write(prog)\n")
    assert look.look(["drgn", "vmlinux", str(script)]) == ""
    assert opened == [("parked system", ("vmlinux",))]
    assert (tmp_path / "said").read_text() == "the program"


def test_the_command_prints_what_was_found_or_one_sentence(
    parked: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    look.main(["peer", "info"])
    assert "6.12.0-tiny" in capsys.readouterr().out
    for words, status in ((["look"], 2), (["peer", "dump", str(tmp_path / "no/dump")], 1)):
        with pytest.raises(SystemExit) as ended:
            look.main(words)
        assert ended.value.code == status
        assert capsys.readouterr().err.startswith(("kjump: ", "usage"))


def test_no_vmcore_is_one_sentence(tmp_path: Path) -> None:
    with root.below(tmp_path), pytest.raises(FormatError, match="was given no ELF core headers"):
        open_parked(0)


# --- the level that is found by measuring ----------------------------------------------------------------------------


class SlowTarget:
    """A target that takes bytes at a rate, by the clock of `compression`."""

    capacity = 64 << 20

    def __init__(self, clock: list[float], rate: float) -> None:
        self.clock, self.rate, self.written = clock, rate, 0

    def write(self, offset: int, data: bytes) -> None:
        self.written += len(data)
        self.clock[0] += len(data) / self.rate


@pytest.mark.parametrize(("rate", "levels"), [(1e6, {3, 1}), (1e12, {-2, -5})])
def test_a_slow_target_gets_small_images_and_a_quick_one_quick_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float, levels: set[int]
) -> None:
    clock = [0.0]
    speeds = {3: 1e8, 1: 2e8, -2: 6e8, -5: 9e8}
    shares = {3: 0.40, 1: 0.42, -2: 0.70, -5: 0.80}

    def compress(data: bytes, level: int) -> bytes:
        clock[0] += len(data) / speeds[level]
        return bytes(int(len(data) * shares[level]))

    monkeypatch.setattr(_core, "compress_bytes", compress)
    monkeypatch.setattr(compression.time, "monotonic", lambda: clock[0])
    file = tmp_path / "vmcore"
    file.write_bytes(bytes(1 << 20))
    target = SlowTarget(clock, rate)
    with file.open("rb") as opened:
        spans = [(0, 0, 1 << 20)]
        assert compression.measure(opened.fileno(), spans, target, 4096, threads=2) in levels  # type: ignore[arg-type]
        assert target.written == 4 << 20
        assert compression.measure(opened.fileno(), [], target, 4096, threads=2) == 1  # type: ignore[arg-type]
