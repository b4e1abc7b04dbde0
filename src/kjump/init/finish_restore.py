"""The end of every resume: A's pages from the target to memory, and the jump to A.

C does this, and so does a boot kernel that has room for A beside itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from kjump.errors import KjumpError
from kjump.formats.superblock import State, Superblock
from kjump.gates import STATE_ENTERED, Gate
from kjump.hibernate.after_jump import fresh_seed
from kjump.hibernate.resume import ATTEMPTED_AT_BOOT
from kjump.image.destination import Landing
from kjump.image.restore import OpenImage, restore
from kjump.init.console import ProgressBar
from kjump.init.system import Role
from kjump.kexec import loader, mailbox
from kjump.target.device import Target


def bring_back(role: Role, target: Target, opened: OpenImage, landing: Landing, report: dict[str, Any]) -> None:
    """Restore A by way of `landing` and jump to it; A finds `report` and what is said here.

    Returns only by an error.
    """
    role.status.send("restore-begins")
    bar = ProgressBar("restoring", cancellable=False)
    try:
        report |= restore(target, opened, landing, threads=os.cpu_count() or 1, progress=bar)
    finally:
        bar.close()
    role.status.send("restored", **report)
    gate = _gate_for_a(opened.contents.facts)
    loader.current().load(landing.way_back(gate))
    box = landing.mailbox(gate)
    last = _last_superblock(opened.superblock)
    target.write_superblock(last)
    report |= {"saved": last.details.get("saved", {})}
    report["seed"] = fresh_seed(report.get("seed", ""))
    report["rolled_back"] = last.details.get("rolled_back", 0)
    box.report(mailbox.OUTCOME_RESUMED, report)
    role.console.line("kjump: the saved system is restored; going back to it")
    role.status.send("going-back")
    loader.current().jump()


def _last_superblock(superblock: Superblock) -> Superblock:
    """Return what the superblock says from now on: consumed, or one roll-back more."""
    if superblock.state is not State.SNAPSHOT:
        return superblock.evolve(state=State.CONSUMED)
    details = {name: value for name, value in superblock.details.items() if name != ATTEMPTED_AT_BOOT}
    return superblock.evolve(details=details | {"rolled_back": details.get("rolled_back", 0) + 1, "reason": ""})


def _gate_for_a(facts: dict[str, Any]) -> Gate:
    """Return the gate's fields for the way back: as B's gate had them, on the page tables of B's window.

    They are laid out now as they were then, so addresses hold. A finds our entry on its stack; should it jump again,
    the gate is there (in what was B's window) and says that nobody is.
    """
    fields = {f.name: facts["gate"][f.name] for f in dataclasses.fields(Gate) if f.name in facts["gate"]}
    fields["cookie"] = bytes.fromhex(fields["cookie"])
    return dataclasses.replace(Gate(**fields), state=STATE_ENTERED)


@contextlib.contextmanager
def failures_noted(target: Target) -> Iterator[None]:
    """Should what is done within fail, let the superblock say that this image was tried, and what came of it."""
    try:
        yield
    except BaseException as error:
        _note_failure(target, error)
        raise


def _note_failure(target: Target, error: BaseException) -> None:
    reason = str(error) if isinstance(error, KjumpError) else f"{type(error).__name__}: {error}"
    try:
        superblock = target.read_superblock()
        state = superblock.state if superblock.state is State.SNAPSHOT else State.ATTEMPTED
        details = superblock.details if superblock.state is State.SNAPSHOT else {}
        target.write_superblock(superblock.evolve(state=state, details=details | {"reason": reason[:1000]}))
    except KjumpError:
        pass  # it says attempted already; the reason is on the console
