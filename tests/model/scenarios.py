"""What is done on a simulated machine: A hibernates, takes a snapshot, rolls back; its user sees what comes of it."""

from __future__ import annotations

from typing import Any

import rules
import simmemory
from simmachine import Machine

from kjump.errors import KjumpError
from kjump.hibernate import rollback, suspend
from kjump.image.facts import Kind
from kjump.target import filesystems
from kjump.target.file import open_for_image


class Interrupted(BaseException):
    """What a signal's handler raises in A."""


GOES_ON = (KjumpError, OSError, ValueError, KeyboardInterrupt, Interrupted)
_TRIES = 5
"""So often A tries to make an image unusable."""


def request(machine: Machine, **more: Any) -> suspend.TripRequest:
    """Return what A's user asks for."""
    boot = machine.folder / "boot"
    usual: dict[str, Any] = {"window": simmemory.WINDOW, "level": 1, "force": True, "watchdog": 0}
    usual["accept_unseen"] = ("ext4",)  # the simulated file system has no journal
    return suspend.TripRequest(machine.path, boot / "vmlinuz", boot / "initrd", **(usual | more))


def travel(machine: Machine, kind: Kind = Kind.HIBERNATION) -> str:
    """Leave A; return "lost" (the machine booted as usual, or has no power), else the outcome or the error."""
    machine.snapshot = kind is Kind.SNAPSHOT
    found: list[str] = []

    def play() -> None:
        machine.parting = ""
        try:
            trip = suspend.travel(request(machine, kind=kind), machine.tell)
            found.append(trip.outcome.name)
        except GOES_ON as error:
            found.append(f"{type(error).__name__}: {error}")
        if "could not be made unusable" in found[0] or "could not be made unusable" in "".join(machine.told):
            machine.excused = True
            if machine.troubles < _TRIES:
                machine.violations.append(f"A gave up after {machine.troubles} faults")
        else:
            rules.going_on(machine)
        machine.parting = ""
        machine.leave("goes on")

    how = machine.run("A", play)
    return found[0] if how == "goes on" else how


def roll_back(machine: Machine) -> str:
    """Replace A by the snapshot on the target; return "resumed", "lost" or "cut", else the error."""
    found: list[str] = []
    boot = machine.folder / "boot"

    def play() -> None:
        try:
            with open_for_image(machine.path) as target:
                rollback.rollback(target, (boot / "vmlinuz").read_bytes(), (boot / "initrd").read_bytes())
        except GOES_ON as error:
            found.append(f"{type(error).__name__}: {error}")
        machine.leave("goes on")

    how = machine.run("A", play)
    if how == "C":
        how = machine.start_c()
    if how == "resumed":
        filesystems.branch_off(machine.superblock().cookie.hex())
    return found[0] if how == "goes on" else how
