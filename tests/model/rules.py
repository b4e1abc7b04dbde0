"""What must be true of a simulated machine, whatever goes wrong; what is not is one of its `violations`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simmemory import CONTROL, HEAD_AT, LIST, MAILBOX

from kjump.formats.superblock import State

if TYPE_CHECKING:
    from simmachine import Machine


@dataclass
class Saved:
    """A, when it was left: its pages, the `world` outside memory, and which pages of RAM the load took."""

    pages: dict[int, bytes]
    world: int
    pairs: list[tuple[int, int]]
    snapshot: bool
    runs: int = 0


def brought_back(machine: Machine) -> None:
    """A system is back: it is what was saved, once, over disks as it knows them, and the medium says so."""
    superblock = machine.superblock()
    saved = machine.saved.get(superblock.cookie)
    if saved is None:
        machine.violations.append("what runs was never saved")
        return
    machine.resumed += 1
    saved.runs += 1
    same(machine, saved, "the system that was resumed")
    wanted = State.SNAPSHOT if saved.snapshot else State.CONSUMED
    if superblock.state is not wanted:
        machine.violations.append(f"an image runs while the medium says {superblock.state.name}")
    if saved.runs > 1 and not saved.snapshot:
        machine.violations.append("an image ran twice")
    if machine.world != saved.world and not machine.excused:
        machine.violations.append(f"an image runs over disks that have changed ({saved.world} -> {machine.world})")


def parting(machine: Machine) -> None:
    """B has gone back: only if something went wrong there may a complete image be on the medium, or in the cache."""
    if State.COMPLETE in (machine.superblock().state, machine.superblock(cached=True).state):
        machine.parting = "odd"
        if not machine.troubles:
            machine.violations.append("B went back and left a complete image")


def going_on(machine: Machine) -> None:
    """A goes on, and its user was told nothing else: no image of it may be on the medium."""
    state = machine.superblock().state
    if state in (State.COMPLETE, State.ATTEMPTED):
        machine.violations.append(f"A goes on, and the medium says {state.name}")


def same(machine: Machine, saved: Saved, what: str) -> None:
    """Compare RAM with what it was, but for pages that the load took, and what the way itself changes."""
    free = {source for _, source in saved.pairs} | {LIST, MAILBOX}
    for at, page in saved.pages.items():
        now = machine.memory.read(at, len(page))
        if at == CONTROL:
            now, page = (p[: HEAD_AT - at] + p[HEAD_AT - at + 8 :] for p in (now, page))
        if at not in free and now != page:
            machine.violations.append(f"{what} is not what was saved: page {at:#x}")
            return
