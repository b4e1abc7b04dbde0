"""This system goes on although a complete image of it may be on the medium: that image must never run.

File systems' digests see nothing here, so all depends on what the superblock says when the power is lost.
"""

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import crash
import pytest
from crash import Machine, PowerLost, failing

from kjump.errors import HostError, KjumpError, TargetError
from kjump.formats.superblock import Details, State
from kjump.hibernate import suspend
from kjump.init import jobs
from kjump.init.unfinished import unfinished
from kjump.init.watchdog import Guard
from kjump.kexec import loader, mailbox


@pytest.fixture
def machine() -> Iterator[Machine]:
    with crash.machine() as made:
        yield made


def stays_on() -> None:
    raise HostError("the machine did not power off")


# --- none of this is so by accident: the same machine does hibernate and resume --------------------------------


def test_a_machine_that_switches_off_resumes(machine: Machine) -> None:
    trip = machine.travel()
    assert (trip.outcome, machine.state) == (mailbox.Outcome.RESUMED, State.CONSUMED)
    assert machine.boot() == "ordinary"


def test_nothing_is_written_by_a_system_that_was_resumed(machine: Machine) -> None:
    seen: list[tuple[str, str]] = []
    machine.event = lambda who, what: seen.append((who, what))
    machine.came_back = seen.clear
    machine.travel()
    assert seen == []


# --- B goes back: the image is unusable before, for A may not come to it ---------------------------------------


def b_is_back_and_power_goes(machine: Machine) -> None:
    machine.came_back = machine.power_goes
    with pytest.raises(PowerLost):
        machine.travel()
    assert machine.boot_after_power_loss() == "ordinary"
    assert machine.state is State.INVALID


@pytest.mark.parametrize("power_off", [stays_on, lambda: None], ids=["refused", "returns"])
def test_b_gives_up_when_the_machine_stays_on(machine: Machine, power_off: Callable[[], None]) -> None:
    machine.power_off = power_off
    b_is_back_and_power_goes(machine)


@pytest.mark.parametrize("where", ["saved", "kjump: the first system is saved"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "console"), RuntimeError("odd"), KeyboardInterrupt()], ids=repr)
def test_b_gives_up_when_something_raises_after_the_save(machine: Machine, where: str, error: BaseException) -> None:
    def raising(line: str) -> None:
        if line.startswith(where):
            raise error

    machine.in_b = raising
    b_is_back_and_power_goes(machine)


@pytest.mark.parametrize("where", ["saved", "kjump: the first system is saved"])
def test_b_gives_up_when_its_time_limit_strikes_after_the_save(machine: Machine, where: str) -> None:
    machine.time_limit = 0.3
    machine.in_b = lambda line: threading.Event().wait(60) if line.startswith(where) else None
    b_is_back_and_power_goes(machine)


def test_the_job_does_not_write_complete_once_its_time_limit_has_struck(machine: Machine) -> None:
    """The time limit strikes just before the last superblock; its jump takes a while, in which the job goes on."""
    machine.time_limit = 0.2
    at_last, finish = threading.Event(), jobs.Unfinished.finish

    def slow(self: Any, superblock: Any) -> None:
        at_last.wait(10)
        finish(self, superblock)

    go_home = machine.go_home

    def jump() -> None:
        at_last.set()
        threading.Event().wait(0.5)
        go_home()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs.Unfinished, "finish", slow)
        patch.setattr(machine, "go_home", jump)
        machine.came_back = machine.power_goes
        with pytest.raises(PowerLost):
            machine.travel()
    assert machine.state is State.WRITING
    assert machine.boot_after_power_loss(cache=True) == "ordinary"


def test_the_machine_is_not_switched_off_once_the_time_limit_has_struck(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image is unusable by then, and this system would be lost."""
    machine.time_limit = 0.3
    leaving = threading.Event()

    go_home = machine.go_home

    def jump() -> None:
        leaving.set()
        threading.Event().wait(0.5)
        go_home()

    monkeypatch.setattr(machine, "go_home", jump)
    machine.in_b = lambda line: leaving.wait(10) if line.startswith("kjump: the first system is saved") else None
    trip = machine.travel()
    assert (trip.outcome, machine.state) == (mailbox.Outcome.FAILED, State.INVALID)
    assert "time limit" in trip.report.reason


def test_a_job_that_raises_leaves_nothing_complete_and_the_target_closed(machine: Machine) -> None:
    armed = machine.open().arm()
    with pytest.raises(HostError), unfinished(machine.open(), Guard()) as made:
        made.finish(armed.evolve(state=State.COMPLETE))
        stays_on()
    assert machine.state is State.INVALID
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(made.target.disk.fd)  # type: ignore[attr-defined]


def test_the_time_limit_does_not_wait_for_a_disk_that_hangs(machine: Machine) -> None:
    machine.time_limit = 0.3
    writes = 0

    def hangs(who: str, what: str) -> None:
        nonlocal writes
        writes += (who, what) == ("B", "write")
        if who == "B" and writes == 2:
            threading.Event().wait()

    machine.event = hangs
    trip = machine.travel()
    assert "time limit" in trip.report.reason
    assert machine.state is State.INVALID


def test_nothing_is_completed_by_a_job_that_comes_to_it_while_its_time_limit_goes_back(machine: Machine) -> None:
    guard = Guard()
    guard.end()
    armed = machine.open().arm()
    with unfinished(machine.open(), guard) as made, pytest.raises(TargetError, match="given up"):
        made.finish(armed.evolve(state=State.COMPLETE))
    assert machine.state is State.ARMED


def test_nothing_keeps_a_second_kernel_from_going_back() -> None:
    guard = Guard()
    guard.before_return(stays_on)
    guard.end()
    assert guard.disarm()


def test_a_clock_that_was_stopped_in_time_does_not_strike() -> None:
    guard, struck = Guard(), threading.Event()
    guard.limit(0.05, struck.set)
    assert guard.disarm()
    assert not struck.wait(0.2)
    guard = Guard()
    guard.limit(0.0, struck.set)
    assert struck.wait(10)
    assert not guard.disarm()


# --- A is back: the image is unusable whatever A does next -----------------------------------------------------


def ctrl_c(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    machine.came_back = lambda: signal.raise_signal(signal.SIGINT)


def terminated(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    def raising(number: int, frame: Any) -> None:
        raise SystemExit(number)

    signal.signal(signal.SIGTERM, raising)
    machine.came_back = lambda: signal.raise_signal(signal.SIGTERM)


def report_damaged(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    def damage() -> None:
        machine.page[0x20:0x28] = b"\xff" * 8

    machine.came_back = damage


def unload_refused(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    def refuse(flags: int) -> None:
        raise HostError("the kernel refused to unload: another program is loading one")

    patch.setattr(loader.current(), "unload", refuse)


def log_odd(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    def odd(*_: Any) -> dict[str, Any]:
        raise ValueError("negative shift count")

    patch.setattr(suspend.post_mortem, "with_log", odd)
    patch.setattr(suspend.after_jump, "mend", odd)


def nothing_odd(machine: Machine, patch: pytest.MonkeyPatch) -> None:
    pass


IN_A = [nothing_odd, ctrl_c, terminated, report_damaged, unload_refused, log_odd]
BASE = (KjumpError, KeyboardInterrupt, SystemExit, ValueError)


@pytest.mark.parametrize("what", IN_A)
def test_a_gives_up_before_anything_can_raise(machine: Machine, what: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.power_off = machine.panic
    handler = signal.getsignal(signal.SIGTERM)
    what(machine, monkeypatch)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        if what is nothing_odd:
            assert machine.travel().outcome == mailbox.Outcome.PANIC
        elif what is report_damaged:
            trip = machine.travel()
            assert trip.outcome == mailbox.Outcome.NONE and "claims a report of" in trip.report.reason
        else:
            with pytest.raises(BASE):
                machine.travel()
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    assert machine.state is State.INVALID
    assert machine.boot_after_power_loss() == "ordinary"


@pytest.mark.parametrize("what", ["read", "write", "flush"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EBUSY])
@pytest.mark.parametrize("times", [1, 2, 4])
@pytest.mark.parametrize("ending", ["panic", "stays on"])
def test_a_tries_again(machine: Machine, what: str, number: int, times: int, ending: str) -> None:
    machine.power_off = machine.panic if ending == "panic" else stays_on

    def back() -> None:
        machine.event = failing("A", what, times=times, number=number)

    machine.came_back = back
    machine.travel()
    assert machine.boot_after_power_loss() == "ordinary"


def test_a_needs_not_read_what_it_gives_up(machine: Machine) -> None:
    machine.power_off = machine.panic
    machine.event = failing("A", "read", times=1000, after=1)
    machine.travel()
    assert machine.boot_after_power_loss() == "ordinary"


def test_signals_wait_until_a_has_written(machine: Machine) -> None:
    machine.power_off = machine.panic

    def back() -> None:
        machine.event = lambda who, what: signal.raise_signal(signal.SIGINT)

    machine.came_back = back
    with pytest.raises(KeyboardInterrupt):
        machine.travel()
    assert machine.boot_after_power_loss() == "ordinary"


def test_what_b_could_not_flush_is_written_again_by_a(machine: Machine) -> None:
    """B's INVALID is in the drive's cache only: the superblock reads as invalid, and would be gone with the power."""
    machine.power_off = stays_on
    machine.event = failing("B", "flush", times=100, after=3)
    machine.travel()
    assert machine.boot_after_power_loss() == "ordinary"


def test_what_cannot_be_made_unusable_is_said_with_what_to_do(machine: Machine) -> None:
    machine.power_off = machine.panic

    def back() -> None:
        machine.event = failing("A", "write", times=1000)
        signal.raise_signal(signal.SIGINT)  # which must not hide it

    machine.came_back = back
    with pytest.raises(TargetError, match=r"went on \(.*panicked.*/dev/simulated could not .*kjump.noresume") as raised:
        machine.travel()
    assert machine.told[-1] == str(raised.value)
    assert raised.value.exit_status != 0
    machine.event = crash.nothing
    assert machine.state is State.COMPLETE
    assert machine.boot(**{"kjump.noresume": ""}) == "ordinary"
    assert machine.boot() == "ordinary"


def test_a_target_that_is_somebody_elses_by_now_is_left_alone(machine: Machine) -> None:
    with machine.open() as mine, machine.open() as other:
        mine.arm()
        theirs = other.arm()
        other.write_superblock(theirs.evolve(state=State.COMPLETE))
        mine.give_up_image("mine")
    assert machine.state is State.COMPLETE


@pytest.mark.parametrize("there", [bytes(4096), b"a file system".ljust(4096, b"x")])
def test_a_disk_that_was_exchanged_is_left_alone(machine: Machine, there: bytes) -> None:
    with machine.open() as mine:
        mine.arm()
        os.pwrite(machine.disk.fd, there, 0)
        mine.give_up_image("mine")
    assert os.pread(machine.disk.fd, 4096, 0) == there


def test_a_superblock_that_was_torn_is_written_anew(machine: Machine) -> None:
    with machine.open() as mine:
        armed = mine.arm()
        torn = armed.evolve(state=State.COMPLETE, details=Details(others={"long": "x" * 3000})).pack()[:1024] + bytes(
            3072
        )
        os.pwrite(machine.disk.fd, torn, 0)
        mine.give_up_image("mine")
    assert machine.state is State.INVALID


@pytest.mark.parametrize("what", ["read", "write", "flush"])
def test_a_boot_that_does_not_resume_tries_again_too(machine: Machine, what: str) -> None:
    with machine.open() as target:
        target.write_superblock(target.arm().evolve(state=State.COMPLETE))
    machine.event = failing("boot", what, times=4)
    assert machine.boot(**{"kjump.noresume": ""}) == "ordinary"
    machine.disk.lose_power(cache=False)
    assert machine.state is State.INVALID


# --- everything that can fail in B, at each thing that it does to the disk --------------------------------------


@pytest.mark.parametrize("fault", [errno.EIO, errno.ENOSPC, "panic"])
@pytest.mark.parametrize("after", range(12))
def test_no_fault_of_the_disk_in_b_leaves_an_image_that_runs(machine: Machine, fault: Any, after: int) -> None:
    machine.power_off = stays_on
    count = 0

    def event(who: str, what: str) -> None:
        nonlocal count
        count += who == "B"
        if who == "B" and count == after + 1:
            if fault == "panic":
                machine.panic()
            raise OSError(fault, "fault")

    machine.event = event
    try:
        trip = machine.travel()
        assert trip.outcome not in (mailbox.Outcome.RESUMED, mailbox.Outcome.DONE)
    except KjumpError as error:
        assert "no block device carries the cookie" in str(error)
    assert machine.boot_after_power_loss() == "ordinary"
