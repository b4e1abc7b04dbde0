"""The end of every resume: A's pages from the target to memory, and the jump to A.

C does this, and so does a boot kernel that has room for A beside itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace

from kjump.errors import in_words
from kjump.formats.superblock import State, Superblock
from kjump.gates import STATE_ENTERED, Gate
from kjump.hibernate.after_jump import fresh_seed
from kjump.hibernate.report import Report
from kjump.image.destination import Landing
from kjump.image.restore import OpenImage, restore
from kjump.init.console import ProgressBar
from kjump.init.system import Role
from kjump.kexec import loader, mailbox
from kjump.target.device import Target


def bring_back(role: Role, target: Target, opened: OpenImage, landing: Landing, report: Report) -> None:
    """Restore A by way of `landing` and jump to it; A finds `report` and what is said here.

    Returns only by an error.
    """
    role.status.send("restore-begins")
    bar = ProgressBar("restoring", cancellable=False)
    try:
        done = restore(target, opened, landing, threads=os.cpu_count() or 1, progress=bar)
    finally:
        bar.close()
    report = replace(report, restored_bytes=done.size, restore_seconds=done.seconds, restore_memory=done.memory)
    role.status.send("restored", **replace(report, seed=b"").to_json())
    gate = _gate_for_a(opened.contents.facts.gate)
    loader.current().load(landing.way_back(gate))
    box = landing.mailbox(gate)
    last = _last_superblock(opened.superblock)
    target.write_superblock(last)
    report = replace(
        report, saved=last.details.saved, seed=fresh_seed(report.seed), rolled_back=last.details.rolled_back
    )
    box.report(mailbox.Outcome.RESUMED, report.to_json())
    role.console.line("kjump: the saved system is restored; going back to it")
    role.status.send("going-back")
    loader.current().jump()


def _last_superblock(superblock: Superblock) -> Superblock:
    """Return what the superblock says from now on: consumed, or one roll-back more."""
    if superblock.state is not State.SNAPSHOT:
        return superblock.evolve(state=State.CONSUMED)
    return superblock.evolve(
        details=replace(superblock.details, rolled_back=superblock.details.rolled_back + 1, reason="", rollback_boot="")
    )


def _gate_for_a(saved: Gate) -> Gate:
    """Return the gate's fields for the way back: as B's gate had them, on the page tables of B's window.

    They are laid out now as they were then, so addresses hold. A finds our entry on its stack; should it jump again,
    the gate is there (in what was B's window) and says that nobody is.
    """
    return replace(saved, state=STATE_ENTERED)


@contextlib.contextmanager
def failures_noted(target: Target) -> Iterator[None]:
    """Should what is done within fail, let the superblock say that this image was tried, and what came of it."""
    try:
        yield
    except BaseException as error:
        _note_failure(target, error)
        raise


def _note_failure(target: Target, error: BaseException) -> None:
    try:
        superblock = target.read_superblock()
        state = superblock.state if superblock.state is State.SNAPSHOT else State.ATTEMPTED
        target.write_superblock(superblock.evolve(state=state, details=superblock.details.because(in_words(error))))
    except Exception:
        pass  # it says attempted already; the reason is on the console
