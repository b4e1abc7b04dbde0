"""The restorer role, in C: put A's pages where they belong, mark the image consumed, jump to A.

Until the jump a failure leaves the image marked as attempted, with the reason, and the machine restarts:
the next boot is an ordinary one, and says so.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from kjump.errors import KjumpError
from kjump.formats.superblock import State
from kjump.gates import STATE_ENTERED, Gate
from kjump.hibernate.restore import OpenImage, open_image, own_memory, restore
from kjump.hibernate.target import Place, Target, find_target
from kjump.kexec import host, mailbox
from kjump.kexec.linux import way_back_plan
from kjump.ranges import Range
from kjump.roles.console import ProgressBar
from kjump.roles.system import Role, uptime

_TARGET_TIMEOUT = 5.0


def run(role: Role) -> None:
    """Restore A and jump to it; raises when that is impossible, after saying so in the superblock."""
    report: dict[str, Any] = {"boot_seconds": uptime()}
    place = Place.from_json(role.job["target"])
    with find_target(bytes.fromhex(role.job["cookie"]), place, timeout=_TARGET_TIMEOUT) as target:
        try:
            opened = open_image(target, states=(State.ATTEMPTED,))
            _restore(role, target, opened, report)
        except BaseException as error:
            _note_failure(target, error)
            raise


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
    target.write_superblock(opened.superblock.evolve(state=State.CONSUMED))
    saved = opened.superblock.details.get("saved", {})
    box.report(mailbox.OUTCOME_RESUMED, report | {"saved": saved} | role.job.get("report", {}))
    role.console.line("kjump: A is restored; going back to it")
    role.status.send("going-back")
    host.jump()


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
        target.write_superblock(superblock.evolve(state=State.ATTEMPTED, details={"reason": reason[:1000]}))
    except KjumpError:
        pass  # it says attempted already; the reason is on the console
