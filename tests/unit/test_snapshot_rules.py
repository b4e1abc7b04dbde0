"""What decides about snapshots without a machine: the clock, who has written to a disk, hooks, kinds of images."""

import hashlib
import json
import os
import struct
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kjump import _core
from kjump.errors import HostError, ImageError, UsageError
from kjump.formats import cpio
from kjump.formats.record import Record
from kjump.formats.superblock import State
from kjump.hibernate import after_jump
from kjump.hibernate.clock import Moment, Pace
from kjump.hibernate.hooks import archive, read_hook
from kjump.hibernate.report import Report
from kjump.image.facts import HOOK_LIMIT, Hook, Kind
from kjump.init import run_program
from kjump.init.jobs import look
from kjump.kexec import mailbox
from kjump.target import filesystems
from kjump.target.states import Departure, DiskState, FileSystem, Lineage, Mounted, Written

# --- the clock --------------------------------------------------------------------------------------------


def test_the_counter_counts_seconds() -> None:
    pace = Pace()
    time.sleep(0.2)
    pace.measure()
    begun, stamp = time.monotonic(), _core.time_stamp()
    time.sleep(0.05)
    counted, passed = pace.seconds(stamp, _core.time_stamp()), time.monotonic() - begun
    assert counted == pytest.approx(passed, rel=0.2)


def test_a_moment_travels() -> None:
    moment = Moment.now(0.5)
    assert Moment.from_json(Record(json.loads(json.dumps(moment.to_json())), "a moment")) == moment


class FixedPace(Pace):
    """A counter of which nothing has passed."""

    def seconds(self, earlier: int, later: int) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("ahead", "accuracy", "set_to"), [(100.0, 0.001, True), (-100.0, 0.001, True), (0.4, 1.0, False)]
)
def test_the_wall_clock_is_set_when_it_is_off(
    monkeypatch: pytest.MonkeyPatch, ahead: float, accuracy: float, set_to: bool
) -> None:
    calls: list[float] = []
    monkeypatch.setattr(time, "clock_settime", lambda _, value: calls.append(value))
    wall = time.time() + ahead
    step = after_jump.set_clock(Moment(wall, 0, accuracy), FixedPace())
    assert calls == ([wall] if set_to else [])
    assert step == pytest.approx(ahead if set_to else 0.0, abs=1.0)


def test_the_other_sides_clock_comes_before_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    seeds: list[bytes] = []
    monkeypatch.setattr(time, "clock_settime", lambda _, value: calls.append(value))
    monkeypatch.setattr(after_jump, "reseed", seeds.append)
    theirs, ours = Moment(time.time() + 5000, 0), Moment(time.time() - 5000, 0)
    after_jump.mend(Report(clock=theirs, seed=b"\xab" * 32), ours, FixedPace())
    assert calls == [theirs.wall]
    assert seeds == [b"\xab" * 32]
    after_jump.mend(Report(), ours, FixedPace())
    assert calls == [theirs.wall, ours.wall] and seeds[1] == b""


def test_a_seed_depends_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getrandom", bytes)
    assert after_jump.fresh_seed(b"\1") == hashlib.sha256(b"\1" + bytes(32)).digest() != after_jump.fresh_seed(b"\2")


# --- who has written to a disk -----------------------------------------------------------------------------


ITEM = Mounted("/dev/sdz9", "/srv", "xfs", True)


def wrote(*counts: int) -> tuple[Written, ...]:
    return (Written("/dev/sdz9", counts),)


THEN = Departure(Lineage("boot"), wrote(3, 24))


def judge(
    monkeypatch: pytest.MonkeyPatch,
    *,
    lineage: Lineage,
    written: tuple[Written, ...],
    item: Mounted = ITEM,
    then: Departure | None = THEN,
    cold: bool = False,
) -> None:
    monkeypatch.setattr(filesystems, "lineage", lambda: lineage)
    monkeypatch.setattr(filesystems, "written", lambda _: written)
    filesystems.check_unwritten([FileSystem(item, DiskState("00" * 32))], then, "snapshot", cold=cold)


SAME = Lineage("boot")


def test_disks_that_nobody_has_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    judge(monkeypatch, lineage=SAME, written=wrote(3, 24))
    # Rolled back to this very snapshot before: counts went on from there.
    judge(monkeypatch, lineage=Lineage("boot/1", "snapshot"), written=wrote(3, 24))
    judge(monkeypatch, lineage=Lineage("another"), written=(), item=replace(ITEM, writable=False))


@pytest.mark.parametrize(
    "case",
    [
        {"lineage": SAME, "written": wrote(4, 32)},
        {"lineage": SAME, "written": ()},
        {"lineage": SAME, "written": wrote(3, 24), "then": None},
        {"lineage": SAME, "written": wrote(3, 24), "cold": True},
        # The same counts, but on another branch: after a roll-back to another snapshot, or another boot.
        {"lineage": Lineage("boot/1", "another"), "written": wrote(3, 24)},
        {"lineage": Lineage("other boot"), "written": wrote(3, 24)},
        {"lineage": SAME, "written": wrote(4, 32), "item": replace(ITEM, type="swap")},
    ],
)
def test_disks_that_may_have_been_written_to_are_named(monkeypatch: pytest.MonkeyPatch, case: dict[str, Any]) -> None:
    wanted = "swap space on /dev/sdz9" if "item" in case else r"xfs file system on /dev/sdz9 \(mounted at /srv\)"
    with pytest.raises(ImageError, match=f"the {wanted}.* been written to since the snapshot"):
        judge(monkeypatch, **case)


def test_a_lineage_is_of_one_boot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(filesystems, "_LINEAGE", tmp_path / "kjump/lineage")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert filesystems.lineage() == Lineage(boot)
    filesystems.branch_off("c0ffee")
    first = filesystems.lineage()
    assert first.base == "c0ffee" and first.id.startswith(boot + "/")
    filesystems.branch_off("c0ffee")
    assert filesystems.lineage().id != first.id
    for stale in (json.dumps({"id": "old boot/1", "base": "c0ffee"}), "nonsense", "[]", "{}"):
        (tmp_path / "kjump/lineage").write_text(stale)
        assert filesystems.lineage() == Lineage(boot)


# --- hooks -------------------------------------------------------------------------------------------------


def test_a_hook_travels_in_the_facts_and_is_packed_with_its_tools(tmp_path: Path) -> None:
    script, tool = tmp_path / "hook", tmp_path / "busybox"
    script.write_text("#!/bin/sh\nexit 0\n")
    tool.write_bytes(b"\x7fELF tool")
    hook = read_hook(script, [tool])
    again = Hook.from_json(Record(json.loads(json.dumps(hook.to_json())), "a hook"))
    assert again == hook
    names = {entry.name: entry for entry in cpio.iterate(archive(again))}
    assert names["kjump/hook"].data == script.read_bytes() and names["kjump/hook"].mode & 0o111
    assert names["kjump/tools/busybox"].data == tool.read_bytes()
    assert names["bin/sh"].data == b"/kjump/tools/busybox"
    tool.write_bytes(b"\x7fELF another")
    with pytest.raises(ImageError, match=r"tool .*/busybox is not here, or not the one"):
        archive(again)


@pytest.mark.parametrize(("data", "why"), [(b"echo", "neither a script"), (b"#!" + bytes(HOOK_LIMIT), "at most")])
def test_what_cannot_be_a_hook(tmp_path: Path, data: bytes, why: str) -> None:
    path = tmp_path / "hook"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=why):
        read_hook(path, [])


# --- programs run by a role --------------------------------------------------------------------------------


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run_program, "_OUTPUT", tmp_path / "output")


ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


@pytest.mark.usefixtures("output")
def test_a_program_and_its_output() -> None:
    done = run_program.run(["sh", "-c", "echo out; echo err >&2; exit 3"], ENVIRONMENT, timeout=30)
    assert done == run_program.Done(3, "out\nerr\n")
    assert run_program.run(["sh", "-c", "kill -9 $$"], ENVIRONMENT, timeout=30).status == 137
    with pytest.raises(HostError, match="the hook ended with exit status 3; its last words: out"):
        run_program.require(["sh", "-c", "echo out; exit 3"], ENVIRONMENT, timeout=30, what="the hook")
    with pytest.raises(HostError, match="cannot run /no/such"):
        run_program.run(["/no/such"], ENVIRONMENT, timeout=30)


@pytest.mark.usefixtures("output")
def test_a_program_past_its_time_limit_is_ended() -> None:
    with pytest.raises(HostError, match=r"still ran after 0 s; its last words: begun"):
        run_program.run(["sh", "-c", "echo begun; sleep 1000"], ENVIRONMENT, timeout=0.3)


# --- kinds of images, and words ------------------------------------------------------------------------------


def test_kinds_and_states() -> None:
    assert Kind("hibernation").state is State.COMPLETE
    assert Kind("snapshot").state is State.SNAPSHOT
    assert Kind("dump").state is State.DUMP


def test_words_that_fit_in_a_mailbox() -> None:
    assert mailbox.fits({"a": "x" * 4000})
    assert not mailbox.fits({"a": "x" * 4096})
    with pytest.raises(ValueError, match="at most"):
        mailbox.encode(bytes(16), 0, 0, {"a": "x" * 4096})


@pytest.mark.parametrize("words", [[], ["nothing"], ["info", "--yaml"], ["info", "a", "b"]])
def test_looks_that_make_no_sense(words: list[str]) -> None:
    with pytest.raises(UsageError, match="usage: kjump peer"):
        look.look(words)


def test_a_look_where_nobody_is_parked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        look.main(["peer", "info"])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("kjump: there is no parked system here")


def test_entropy_is_packed_as_the_kernel_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, bytes]] = []
    monkeypatch.setattr(after_jump.fcntl, "ioctl", lambda _, request, data=b"": calls.append((request, data)))
    after_jump.reseed(b"12345678")
    # struct rand_pool_info: bits of entropy, bytes, the bytes (include/uapi/linux/random.h)
    assert calls == [(0x40085203, struct.pack("=ii", 64, 8) + b"12345678"), (0x5207, b"")]
