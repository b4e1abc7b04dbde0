"""What a snapshot's and a hibernation's user is told, and the file that is made for it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from examples import SAVED

from kjump.errors import JumpError
from kjump.hibernate import snapshot as snapshots
from kjump.hibernate import suspend
from kjump.hibernate.clock import Moment, Pace
from kjump.hibernate.report import Report, Stamps
from kjump.hibernate.suspend import Trip, TripRequest
from kjump.host import root
from kjump.image.facts import Kind
from kjump.kexec.mailbox import Outcome
from kjump.target import filesystems

REQUEST = TripRequest("/dev/vdb", Path("/boot/vmlinuz"), Path("/boot/initrd"))
STAMPS = Stamps(entered=2000, begun=4000, hooked=5000, saved=9000)


class Steady(Pace):
    """A pace of 1000 counts a second."""

    def __init__(self) -> None:
        super().__init__()
        self._rate = 1000.0


def trip(outcome: Outcome, **report: Any) -> Trip:
    return Trip(
        outcome, Report(**report), 128 << 20, bytes(range(16)), 0.25, Steady(), Moment(100.0, 1000), 9500, 3.5, 0.1
    )


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "proc/sys/kernel/random").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/random/boot_id").write_text("a boot\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1000 kB\nMemFree: 400 kB\nHugePages_Total: 0\n")
    with root.below(tmp_path):
        yield tmp_path


def test_a_snapshot_that_was_taken(machine: Path) -> None:
    asked: list[TripRequest] = []

    def go(request: TripRequest, tell: Any) -> Trip:
        asked.append(request)
        tell("jumping")
        return trip(Outcome.DONE, stamps=STAMPS, saved=SAVED)

    told: list[str] = []
    found = snapshots.snapshot(REQUEST, tell=told.append, go=go)
    assert (found.taken, found.rolled_back, found.count, found.kind, found.reason) == (True, False, 0, "snapshot", "")
    assert found.phases == {
        "prepare": 0.25, "pause": 8.5, "freeze": 1.0, "boot": 2.0, "hook": 1.0, "save": 4.0, "back": 0.5
    }  # fmt: skip
    assert [*found.stamps] == ["left", "entered", "begun", "hooked", "saved", "back"]
    assert found.report.stamps is None and found.report.saved == SAVED
    assert (asked[0].kind, told) == (Kind.SNAPSHOT, ["jumping"])
    assert not (machine / "run").exists()
    snapshots.raise_unless_taken(found)


def test_a_system_that_was_rolled_back_is_another_branch_of_history(machine: Path) -> None:
    found = snapshots.snapshot(REQUEST, go=lambda *_: trip(Outcome.RESUMED, rolled_back=3))
    assert (found.taken, found.rolled_back, found.count) == (True, True, 3)
    assert found.phases == {"prepare": 0.25, "away": 3.5}
    lineage = json.loads((machine / "run/kjump/lineage").read_text())
    assert lineage["base"] == bytes(range(16)).hex() and lineage["id"].startswith("a boot/")
    assert filesystems.lineage().to_json() == lineage


def test_a_snapshot_that_failed_says_why(machine: Path) -> None:
    request = replace(REQUEST, dump_level=31)
    found = snapshots.snapshot(request, go=lambda *_: trip(Outcome.FAILED, reason="the target is too small"))
    assert (found.taken, found.kind, found.reason) == (False, "dump", "the target is too small")
    with pytest.raises(JumpError, match="no snapshot taken: the target is too small; this system went on"):
        snapshots.raise_unless_taken(found)


def test_a_hibernation_says_what_came_of_it() -> None:
    found = suspend.hibernate(REQUEST, go=lambda *_: trip(Outcome.RESUMED))
    assert (found.resumed, found.reason, found.phases) == (True, "", {"prepare": 0.25, "away": 3.5, "again": 0})
    suspend.raise_unless_resumed(found)
    for outcome, words in (
        (Outcome.GONE, "the second kernel is gone"),
        (Outcome.NONE, "came back without a report"),
        (Outcome.CANCELLED, "gave no reason"),
        (Outcome.PANIC, "panicked: its log could not be read"),
    ):
        found = suspend.hibernate(REQUEST, go=lambda *_, outcome=outcome: trip(outcome))
        with pytest.raises(JumpError, match=f"not hibernated: .*{words}"):
            suspend.raise_unless_resumed(found)


def test_a_hang_that_the_watchdog_ended_is_told_from_a_panic() -> None:
    report = {"panic": "NMI: Not continuing"}
    found = suspend.hibernate(REQUEST, go=lambda *_: trip(Outcome.PANIC, **report))
    assert found.reason.startswith("the second kernel hung, and was ended by the watchdog")


def test_files_are_numbered_and_large_enough(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int]] = []

    class Made:
        def close(self) -> None:
            made.append(("closed", 0))

    def create(path: str, size: int) -> Made:
        made.append((path, size))
        return Made()

    monkeypatch.setattr(snapshots, "create", create)
    folder = tmp_path / "snapshots"
    folder.mkdir()
    assert snapshots.numbered_file(folder) == folder / "snapshot-1.img"
    for name in ("snapshot-9.img", "snapshot-10.img", "snapshot-11.img.old", "other"):
        (folder / name).touch()
    assert snapshots.numbered_file(folder) == folder / "snapshot-11.img"
    size = (600 << 10) * 21 // 20 + (32 << 20)
    assert made == [(str(folder / "snapshot-1.img"), size), ("closed", 0), (str(folder / "snapshot-11.img"), size), ("closed", 0)]  # fmt: skip  # noqa: E501
