"""The power-cut model, smaller: all points of two cases, and some histories. `make powercut` is all of it."""

import contextlib
import io

import cuts
import faults
import histories
import pytest
import scenarios
import simhost
from cuts import Case
from simdisk import Kept, SimDisk

from kjump.formats.superblock import State
from kjump.image.facts import Kind

SEED, HISTORIES = 20261130, 200


@pytest.mark.parametrize("how", [*cuts.DIRECT, *cuts.BY_C], ids=lambda how: " ".join(how))
def test_a_machine_on_which_nothing_fails_resumes_once(how: dict[str, bool]) -> None:
    with simhost.machine(1, **how) as machine:
        assert scenarios.travel(machine) == "RESUMED"
        assert (machine.superblock().state, machine.resumed, machine.boots) == (State.CONSUMED, 1, 1)
        assert ("C", "jump") in machine.log if machine.by_c else ("boot", "jump") in machine.log
        assert machine.boot() == "ordinary"
        assert machine.violations == []
        assert machine.told[-1] == "back"


def test_a_snapshot_is_rolled_back_to_as_often_as_wanted() -> None:
    with simhost.machine(1) as machine:
        machine.at_rest = True
        assert scenarios.travel(machine, Kind.SNAPSHOT) == "DONE"
        assert [scenarios.roll_back(machine) for _ in range(3)] == ["resumed"] * 3
        assert machine.superblock().details.rolled_back == 3
        machine.touch()
        assert "has been written to since the snapshot" in scenarios.roll_back(machine)
        assert (machine.superblock().state, machine.violations) == (State.SNAPSHOT, [])


def test_a_boot_that_is_told_so_rolls_back() -> None:
    with simhost.machine(1, read_only=True) as machine:
        assert cuts.rolled_back_at_boot(machine) == "resumed"
        assert machine.violations == []


def test_a_roll_back_that_fails_each_time_is_not_tried_at_every_boot() -> None:
    with simhost.machine(1, read_only=True) as machine:
        assert cuts.cannot_roll_back(machine) == "ordinary"
        assert (machine.boots, machine.superblock().state) == (2, State.SNAPSHOT)
        machine.cursed = ("", "")
        machine.options = ("kjump.rollback=/dev/sim",)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert machine.boot() == "ordinary"
        assert "an earlier boot tried to roll back to it" in said.getvalue()
        assert machine.superblock().details.rollback_boot
        assert scenarios.roll_back(machine) == "resumed"
        assert not machine.superblock().details.rollback_boot
        assert machine.boot() == "resumed"
        assert machine.violations == []


@pytest.mark.parametrize(
    ("story", "end", "state"),
    [
        (cuts.stays_on, "FAILED", State.INVALID),
        (cuts.panics, "PANIC", State.INVALID),
        (cuts.not_resumed, "lost", State.INVALID),
        (cuts.cannot_restore, "lost", State.INVALID),
    ],
)
def test_a_system_that_goes_on_beside_an_image(story: cuts.Story, end: str, state: State) -> None:
    with simhost.machine(1, blind=True) as machine:
        assert story(machine) == end
        assert (machine.superblock().state, machine.violations) == (state, [])


@pytest.mark.parametrize("case", [c for c in cuts.CASES if c.story is not cuts.resume_again], ids=str)
def test_the_power_may_go_at_any_point(case: Case) -> None:
    found = cuts.try_all(case)
    assert found.violations == []
    assert found.cuts > 40
    assert State.WRITING in found.states and State.ARMED in found.states
    if case.story not in (cuts.not_resumed, cuts.cannot_restore, cuts.cannot_roll_back):
        assert 0 < found.resumed < found.cuts


def test_random_histories() -> None:
    found = histories.explore(SEED, range(HISTORIES))
    assert found.violations == []
    assert found.histories == HISTORIES
    assert found.resumed > HISTORIES // 4 and found.boots > HISTORIES
    assert {"power cut", "EIO", "ENOSPC", "panic", "surprise", *(f.__name__ for f in faults.ON_RETURN)} <= set(
        found.faults
    )


def test_a_history_can_be_played_again() -> None:
    one, other = (histories.history(SEED, 17) for _ in range(2))
    assert (one.steps, one.faults, one.boots) == (other.steps, other.faults, other.boots)


def test_what_a_cache_keeps() -> None:
    disk = SimDisk(64 << 10)
    disk.write(0, b"a" * 8192)
    disk.flush()
    held = {}
    for kept in (Kept.NONE, Kept.SUPERBLOCK, Kept.REST, Kept.ALL):
        disk.write(0, b"b" * 8192)
        assert disk.durable(0, 8192) == b"a" * 8192
        disk.lose_power(kept, None)  # type: ignore[arg-type]
        held[kept] = (disk.durable(0, 512)[:1], disk.durable(4096, 512)[:1])
        disk.write(0, b"a" * 8192)
        disk.flush()
    assert held == {
        Kept.NONE: (b"a", b"a"),
        Kept.SUPERBLOCK: (b"b", b"a"),
        Kept.REST: (b"a", b"b"),
        Kept.ALL: (b"b", b"b"),
    }
    disk.close()
