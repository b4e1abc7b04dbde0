"""The rules of tests/unit/test_stale_image.py for snapshots, and for a kernel on standby."""

import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crash
import crash_standby
import pytest
from crash import Machine, PowerLost
from test_stale_image import BASE, ctrl_c, nothing_odd, report_damaged, stays_on

from kjump.errors import TargetError
from kjump.formats.superblock import State
from kjump.hibernate import suspend
from kjump.init import jobs
from kjump.init.unfinished import unfinished
from kjump.init.watchdog import Guard
from kjump.kexec import mailbox
from kjump.peers import lifecycle


@pytest.fixture
def machine() -> Iterator[Machine]:
    with crash.machine() as made:
        yield made


# --- snapshots ---------------------------------------------------------------------------------------------------


def test_a_snapshot_that_is_done_stays(machine: Machine) -> None:
    machine.then = "back"
    assert machine.travel(kind=suspend.Kind.SNAPSHOT).outcome == mailbox.Outcome.DONE
    assert machine.state is State.SNAPSHOT


@pytest.mark.parametrize("who", ["B", "A"])
def test_a_snapshot_that_was_not_reported_does_not(machine: Machine, who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_seed() -> bytes:
        raise OSError(errno.EIO, "no entropy")

    machine.then = "back"
    if who == "B":
        monkeypatch.setattr(jobs, "fresh_seed", no_seed)
        machine.came_back = machine.power_goes
        with pytest.raises(PowerLost):
            machine.travel(kind=suspend.Kind.SNAPSHOT)
    else:
        report_damaged(machine, monkeypatch)
        assert machine.travel(kind=suspend.Kind.SNAPSHOT).outcome == mailbox.Outcome.NONE
    machine.disk.lose_power(cache=False)
    assert machine.state is State.INVALID


def test_an_image_is_kept_or_given_up_never_both(machine: Machine) -> None:
    machine._runs = "A"
    with machine.open() as target:
        armed = target.arm()
        guard = Guard()
        with unfinished(machine.open(), guard) as made:
            made.finish(armed.evolve(state=State.SNAPSHOT))
            guard.end()
            with pytest.raises(TargetError, match="given up"):
                made.keep()
        assert target.read_superblock().state is State.INVALID
        with unfinished(machine.open(), Guard()) as made:
            made.finish(armed.evolve(state=State.SNAPSHOT))
            made.keep()
        assert target.read_superblock().state is State.SNAPSHOT


# --- a kernel on standby -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    crash_standby.stand_by(machine, monkeypatch, tmp_path)
    return tmp_path


def test_a_kernel_on_standby_saves_and_the_machine_resumes(machine: Machine, folder: Path) -> None:
    trip = crash_standby.travel(machine, folder)
    assert (trip.outcome, machine.state) == (mailbox.Outcome.RESUMED, State.CONSUMED)


def test_a_snapshot_by_a_kernel_on_standby_stays(machine: Machine, folder: Path) -> None:
    machine.then = "back"
    trip = crash_standby.travel(machine, folder, kind=suspend.Kind.SNAPSHOT)
    assert (trip.outcome, machine.state) == (mailbox.Outcome.DONE, State.SNAPSHOT)
    assert trip.report.saved and trip.report.saved.level == 1


@pytest.mark.parametrize("how", ["stays on", "time limit"])
def test_a_kernel_on_standby_gives_up_before_it_goes_back(machine: Machine, folder: Path, how: str) -> None:
    machine.power_off, machine.came_back = stays_on, machine.power_goes
    if how == "time limit":
        machine.time_limit = 0.3
        machine.in_b = lambda line: threading.Event().wait(60) if line == "saved" else None
    with pytest.raises(PowerLost):
        crash_standby.travel(machine, folder)
    assert machine.boot_after_power_loss() == "ordinary"
    assert machine.state is State.INVALID


def mailbox_overwritten(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    def damage() -> None:
        machine.channel[:16] = bytes(16)

    machine.came_back = damage


def words_odd(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    def odd(*_: Any) -> dict[str, Any]:
        raise ValueError("negative shift count")

    patch.setattr(lifecycle, "_with_log", odd)


def ledger_full(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    machine.came_back = lambda: patch.setattr(lifecycle.Ledger, "write", full)


@pytest.mark.parametrize("what", [nothing_odd, ctrl_c, mailbox_overwritten, words_odd, ledger_full])
def test_a_gives_up_before_it_asks_what_became_of_the_kernel_on_standby(
    machine: Machine, folder: Path, what: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.power_off = machine.panic
    what(machine, monkeypatch)
    if what is nothing_odd:
        assert crash_standby.travel(machine, folder).outcome == mailbox.Outcome.PANIC
    elif what is mailbox_overwritten:
        assert "overwritten" in crash_standby.travel(machine, folder).report.reason
    else:
        with pytest.raises((*BASE, OSError)):
            crash_standby.travel(machine, folder)
    assert machine.state is State.INVALID
    assert machine.boot_after_power_loss() == "ordinary"
