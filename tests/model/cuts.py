"""Every point at which the power can go, one after the other, with every choice of what a disk's cache kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import scenarios
import simhost
from faults import power_cut
from simdisk import Kept
from simmachine import Machine

from kjump.formats.superblock import State
from kjump.image.facts import Kind

Story = Callable[[Machine], str]
CHOICES = (*Kept, Kept.RANDOM)


def resume(machine: Machine) -> str:
    """Hibernate, switch off, boot, resume; A goes on."""
    return scenarios.travel(machine)


def resume_again(machine: Machine) -> str:
    """The same over an image that was consumed."""
    faults, machine.faults = machine.faults, {}
    scenarios.travel(machine)
    machine.touch()
    machine.log.clear()
    machine.faults = faults
    return scenarios.travel(machine)


def stays_on(machine: Machine) -> str:
    """Hibernate on a machine that does not switch off: A goes on beside a complete image."""
    machine.power_off_fails = True
    return scenarios.travel(machine)


def panics(machine: Machine) -> str:
    """B panics when it has written a complete image: A goes on."""
    machine.at_power_off = machine.panic
    return scenarios.travel(machine)


def not_resumed(machine: Machine) -> str:
    """Hibernate, and boot without a resume."""
    machine.options = ("kjump.noresume",)
    return scenarios.travel(machine)


def cannot_restore(machine: Machine) -> str:
    """Hibernate; whoever reads the image at the boot panics, each time."""
    machine.cursed = ("C" if machine.by_c else "boot", "pages read")
    return scenarios.travel(machine)


def rolled_back(machine: Machine) -> str:
    """Take a snapshot and roll back to it, twice."""
    machine.at_rest = True
    taken = scenarios.travel(machine, Kind.SNAPSHOT)
    if taken == "DONE":
        taken = scenarios.roll_back(machine)
    return scenarios.roll_back(machine) if taken == "resumed" else taken


def rolled_back_at_boot(machine: Machine) -> str:
    """Take a snapshot, lose the power, and roll back to it at the next boot."""
    machine.at_rest = True
    taken = scenarios.travel(machine, Kind.SNAPSHOT)
    if taken != "DONE":
        return taken
    machine.options = ("kjump.rollback=/dev/sim",)
    if machine.file:
        machine.options += ("kjump.rollback_offset=64",)
    try:
        return machine.boot()
    finally:
        machine.options = ()


def cannot_roll_back(machine: Machine) -> str:
    """Take a snapshot, and boot to roll back to it; C panics each time."""
    machine.cursed = ("C", "pages read")
    return rolled_back_at_boot(machine)


@dataclass(frozen=True)
class Case:
    """A story, and the machine on which it is played."""

    story: Story
    how: dict[str, bool] = field(default_factory=dict)

    def __str__(self) -> str:
        """Name it."""
        return " ".join([self.story.__name__, *self.how])


DIRECT: tuple[dict[str, bool], ...] = ({"blind": True}, {"blind": True, "file": True})
BY_C = tuple(how | {"by_c": True} for how in DIRECT)
CASES = (
    *(Case(resume, how) for how in DIRECT + BY_C),
    Case(resume_again, {"blind": True}),
    Case(resume_again, {"blind": True, "file": True, "by_c": True}),
    *(Case(stays_on, how) for how in DIRECT),
    Case(panics, {}),
    Case(panics, {"file": True}),
    *(Case(not_resumed, how) for how in DIRECT),
    *(Case(cannot_restore, how) for how in (*DIRECT[:1], *BY_C[:1])),
    *(Case(rolled_back, how) for how in DIRECT),
    Case(cannot_roll_back, {"blind": True, "read_only": True}),
    *(Case(rolled_back_at_boot, how | {"read_only": True}) for how in DIRECT),
)


@dataclass
class Found:
    """What came of a case: the cuts that were tried, the states in which they left the superblock, how often an image
    ran, and the rules that were broken."""

    cuts: int = 0
    resumed: int = 0
    states: set[State] = field(default_factory=set)
    violations: list[str] = field(default_factory=list)


def events_of(case: Case) -> list[tuple[str, str]]:
    """Return what the machine's kernels do when nothing goes wrong."""
    with simhost.machine(case, **case.how) as machine:
        case.story(machine)
        assert not machine.violations, (str(case), machine.violations)
        return machine.log


def points(log: list[tuple[str, str]]) -> Iterator[tuple[int, Kept]]:
    """Go through the events to cut at, counted from 1, each with what the caches keep."""
    dirty = False
    for number, (_, what) in enumerate(log, 1):
        if what in ("write", "stream"):
            dirty = True
        elif what == "flush":
            dirty = False
        if what not in ("read", "pages read"):
            yield from ((number, kept) for kept in (CHOICES if dirty else (Kept.NONE,)))


def try_all(case: Case) -> Found:
    """Cut the power at every event of `case`, and boot twice."""
    found = Found()
    for number, kept in points(events_of(case)):
        with simhost.machine((case, number, kept, found.cuts), **case.how) as machine:
            machine.faults[number] = power_cut(kept)
            case.story(machine)
            settle(machine)
            found.cuts += 1
            found.states |= machine.cut_in
            found.resumed += machine.resumed
            found.violations += [f"{case}, event {number}, cache {kept.value}: {v}" for v in machine.violations]
    return found


def settle(machine: Machine) -> None:
    """Boot twice; the second boot finds nothing to resume."""
    machine.faults.clear()
    machine.options, machine.cursed = (), ("", "")
    machine.boot()
    if machine.boot() != "ordinary":
        machine.violations.append("a second boot resumed an image")
