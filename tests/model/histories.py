"""Random histories of a simulated machine, each from its seed: hibernations, roll-backs, boots, and faults anywhere."""

from __future__ import annotations

import errno
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field

import scenarios
import simhost
from cuts import settle
from faults import ON_RETURN, failing, panic, power_cut, raising
from simdisk import Kept
from simmachine import Fault, Machine

from kjump.errors import HostError
from kjump.image.facts import Kind

_EVENTS = 60
"""So many events has a hibernation with its resume, about."""
_SURPRISES = (HostError("another program is loading"), ValueError("odd"), OSError(errno.EIO, "odd"))


@dataclass
class Account:
    """What came of some histories."""

    histories: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    boots: int = 0
    violations: list[str] = field(default_factory=list)

    def __iadd__(self, other: Account) -> Account:
        """Add another."""
        self.histories += other.histories
        self.steps += other.steps
        self.faults += other.faults
        self.resumed += other.resumed
        self.boots += other.boots
        self.violations += other.violations
        return self


def history(seed: int, number: int) -> Account:
    """Play one history."""
    chance = random.Random(f"{seed} {number}")
    how = {name: chance.random() < 0.5 for name in ("file", "blind", "by_c")}
    account = Account(1)
    before = signal.getsignal(signal.SIGTERM)
    with simhost.machine(f"{seed} {number}", **how) as machine:
        for _ in range(chance.randrange(1, 5)):
            story = " + ".join(_equip(machine, chance))
            account.faults.update(story.split(" + ") if story else ())
            end = _step(machine, chance)
            account.steps[end.partition(":")[0] if ":" in end else end] += 1
            _afterwards(machine, chance, end)
            if machine.violations:
                account.violations += [f"history {number} {how}: {story}: {v}" for v in machine.violations]
                break
        else:
            settle(machine)
            account.violations += [f"history {number} {how}, at its end: {v}" for v in machine.violations]
        account.resumed, account.boots = machine.resumed, machine.boots
    signal.signal(signal.SIGTERM, before)
    return account


def _equip(machine: Machine, chance: random.Random) -> list[str]:
    """Choose what shall go wrong in the next step; return it in words."""
    machine.log.clear()
    machine.faults = {}
    machine.troubles = 0
    machine.excused = False
    machine.tell = machine.told.append
    machine.on_return = lambda: None
    machine.options = ("kjump.noresume",) if chance.random() < 0.1 else ()
    words = []
    machine.power_off_fails = chance.random() < 0.25
    if machine.power_off_fails:
        words.append("the machine stays on")
    machine.at_power_off = machine.panic if chance.random() < 0.1 else lambda: None
    if chance.random() < 0.3:
        back = chance.choice(ON_RETURN)
        machine.on_return = back(machine)
        words.append(back.__name__)
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
        word, fault = _fault(chance)
        at = chance.randrange(1, _EVENTS)
        for number in range(at, at + (chance.choice((1, 1, 2, 3)) if word.startswith("E") else 1)):
            machine.faults[number] = fault
        words.append(word)
    return words


def _fault(chance: random.Random) -> tuple[str, Fault]:
    kind = chance.randrange(10)
    if kind < 5:
        return "power cut", power_cut(chance.choice([*Kept]), before=chance.random() < 0.3)
    if kind < 8:
        number = chance.choice((errno.EIO, errno.EIO, errno.ENOSPC))
        return errno.errorcode[number], failing(number, done=chance.random() < 0.4)
    return ("panic", panic) if kind == 8 else ("surprise", raising(chance.choice(_SURPRISES)))


def _step(machine: Machine, chance: random.Random) -> str:
    what = chance.randrange(8)
    machine.at_rest = False
    if what < 6:
        return f"hibernate: {scenarios.travel(machine)}".partition(" Error")[0]
    if what == 6:
        return f"boot {machine.boot()}"
    machine.at_rest = True
    taken = scenarios.travel(machine, Kind.SNAPSHOT)
    if taken != "DONE":
        return f"snapshot: {taken}"
    return f"roll back: {scenarios.roll_back(machine)}"


def _afterwards(machine: Machine, chance: random.Random, end: str) -> None:
    """Let the system that runs write, and perhaps be reset; without one, switch the machine on again."""
    machine.power_off_fails = False
    machine.at_power_off = lambda: None
    if end.endswith(("cut", "restart")):
        if machine.boot() == "resumed":
            machine.touch()
        return
    if not machine.at_rest:
        machine.touch()
    if chance.random() < 0.4:
        for disk in (machine.target, machine.file_system):
            disk.lose_power(Kept.RANDOM, machine.chance)
        machine.boot()
        machine.touch()


def explore(seed: int, numbers: range, seconds: float = float("inf")) -> Account:
    """Play the histories with these `numbers`, or as many as go into `seconds`."""
    account, until = Account(), time.monotonic() + seconds
    for number in numbers:
        try:
            account += history(seed, number)
        except BaseException as error:
            account.violations.append(f"history {number} ended in {type(error).__name__}: {error}")
        if time.monotonic() > until:
            break
    return account
