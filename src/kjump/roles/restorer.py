"""The restorer role, in C: put A's pages where they belong, mark the image consumed, jump to A.

Until the jump a failure leaves the image marked as attempted, with the reason, and the machine restarts:
the next boot is an ordinary one, and says so. A snapshot's image is neither marked nor consumed; how often it was
rolled back to is counted. Its hook comes first, and must make the file systems what they were.
"""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

from kjump.errors import KjumpError
from kjump.formats.superblock import State, Superblock
from kjump.gates import STATE_ENTERED, Gate
from kjump.hibernate import filesystems
from kjump.hibernate.arrival import fresh_seed
from kjump.hibernate.hooks import HOOK, TIMEOUT, environment
from kjump.hibernate.image import Kind
from kjump.hibernate.restore import OpenImage, open_image, own_memory, restore
from kjump.hibernate.target import Place, Target, find_target
from kjump.kexec import host, mailbox
from kjump.kexec.linux import way_back_plan
from kjump.ranges import Range
from kjump.roles import command
from kjump.roles.console import ProgressBar
from kjump.roles.system import Role, uptime

_TARGET_TIMEOUT = 5.0


def run(role: Role) -> None:
    """Restore A and jump to it; raises when that is impossible, after saying so in the superblock."""
    report: dict[str, Any] = {"boot_seconds": uptime()}
    place = Place.from_json(role.job["target"])
    with find_target(bytes.fromhex(role.job["cookie"]), place, timeout=_TARGET_TIMEOUT) as target:
        try:
            snapshot = role.job.get("kind") == Kind.SNAPSHOT
            opened = open_image(target, states=(State.SNAPSHOT if snapshot else State.ATTEMPTED,))
            if snapshot:
                _put_file_systems_back(role, opened, report)
            _restore(role, target, opened, report)
        except BaseException as error:
            _note_failure(target, error)
            raise


def _put_file_systems_back(role: Role, opened: OpenImage, report: dict[str, Any]) -> None:
    """Run the snapshot's hook if it has one, and see that each file system is the one that A remembers."""
    begun = time.monotonic()
    if HOOK.exists():
        role.console.line("kjump: the hook puts file systems back")
        timeout = opened.contents.facts.get("hook_timeout", TIMEOUT)
        command.require([str(HOOK), "restore"], environment(), timeout=timeout, what="the hook")
        report["hook_seconds"] = round(time.monotonic() - begun, 3)
    filesystems.check(opened.contents.facts["file_systems"])


def _restore(role: Role, target: Target, opened: OpenImage, report: dict[str, Any]) -> None:
    facts = opened.contents.facts
    own = own_memory(Range(*facts["window"]), Range(*facts["low"]))
    role.status.send("restore-begins")
    bar = ProgressBar("restoring", cancellable=False)
    try:
        report |= restore(target, opened, own, threads=os.cpu_count() or 1, progress=bar)
    finally:
        bar.close()
    role.status.send("restored", **report)
    gate = _gate_for_a(facts)
    host.load(way_back_plan(int(role.job["gate"]), gate))
    box = mailbox.PeerMailbox(gate.mailbox, gate.cookie)
    last = _last_superblock(opened.superblock)
    target.write_superblock(last)
    report |= {"saved": last.details.get("saved", {})} | role.job.get("report", {})
    report["seed"] = fresh_seed(report.get("seed", ""))
    report["rolled_back"] = last.details.get("rolled_back", 0)
    box.report(mailbox.OUTCOME_RESUMED, report)
    role.console.line("kjump: A is restored; going back to it")
    role.status.send("going-back")
    host.jump()


def _last_superblock(superblock: Superblock) -> Superblock:
    """Return what the superblock says from now on: consumed, or one roll-back more."""
    if superblock.state is not State.SNAPSHOT:
        return superblock.evolve(state=State.CONSUMED)
    return superblock.evolve(
        details=superblock.details | {"rolled_back": superblock.details.get("rolled_back", 0) + 1, "reason": ""}
    )


def _gate_for_a(facts: dict[str, Any]) -> Gate:
    """Return the gate's fields for the way back: as B's gate had them, on the page tables of C's window.

    C lives in the same window by the same layout, so addresses hold. A finds our entry on its stack; should it
    jump again, the gate is there (in what was C's window) and says that nobody is.
    """
    fields = {f.name: facts["gate"][f.name] for f in dataclasses.fields(Gate) if f.name in facts["gate"]}
    fields["cookie"] = bytes.fromhex(fields["cookie"])
    return dataclasses.replace(Gate(**fields), state=STATE_ENTERED)


def _note_failure(target: Target, error: BaseException) -> None:
    reason = str(error) if isinstance(error, KjumpError) else f"{type(error).__name__}: {error}"
    try:
        superblock = target.read_superblock()
        state = superblock.state if superblock.state is State.SNAPSHOT else State.ATTEMPTED
        details = superblock.details if superblock.state is State.SNAPSHOT else {}
        target.write_superblock(superblock.evolve(state=state, details=details | {"reason": reason[:1000]}))
    except KjumpError:
        pass  # it says attempted already; the reason is on the console
