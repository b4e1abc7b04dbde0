"""The restorer role, in C: put A's pages where they belong, mark the image consumed, jump to A.

Until the jump a failure leaves the image marked as attempted, with the reason, and the machine restarts:
the next boot is an ordinary one, and says so. A snapshot's image is neither marked nor consumed; how often it was
rolled back to is counted. Its hook comes first, and must make the file systems what they were.
"""

from __future__ import annotations

import time
from typing import Any

from kjump.formats.superblock import State
from kjump.hibernate.hooks import HOOK, TIMEOUT, environment
from kjump.image.destination import InPlace
from kjump.image.layout import Kind
from kjump.image.restore import OpenImage, open_image, own_memory
from kjump.init import run_program
from kjump.init.finish_restore import bring_back, failures_noted
from kjump.init.system import Role, uptime
from kjump.ranges import Range
from kjump.target import filesystems
from kjump.target.device import Place, Target, find_target

_TARGET_TIMEOUT = 5.0


def run(role: Role) -> None:
    """Restore A and jump to it; raises when that is impossible, after saying so in the superblock."""
    report: dict[str, Any] = {"boot_seconds": uptime()} | role.job.get("report", {})
    place = Place.from_json(role.job["target"])
    with (
        find_target(bytes.fromhex(role.job["cookie"]), place, timeout=_TARGET_TIMEOUT) as target,
        failures_noted(target),
    ):
        _restore(role, target, report)


def _restore(role: Role, target: Target, report: dict[str, Any]) -> None:
    snapshot = role.job.get("kind") == Kind.SNAPSHOT
    opened = open_image(target, states=(State.SNAPSHOT if snapshot else State.ATTEMPTED,))
    if snapshot:
        _put_file_systems_back(role, opened, report)
    facts = opened.contents.facts
    own = own_memory(Range(*facts["window"]), Range(*facts["low"]))
    with InPlace(opened.contents, own, int(role.job["gate"])) as landing:
        bring_back(role, target, opened, landing, report)


def _put_file_systems_back(role: Role, opened: OpenImage, report: dict[str, Any]) -> None:
    """Run the snapshot's hook if it has one, and see that each file system is the one that A remembers."""
    begun = time.monotonic()
    if HOOK.exists():
        role.console.line("kjump: the hook puts file systems back")
        timeout = opened.contents.facts.get("hook_timeout", TIMEOUT)
        run_program.require([str(HOOK), "restore"], environment(), timeout=timeout, what="the hook")
        report["hook_seconds"] = round(time.monotonic() - begun, 3)
    filesystems.check(opened.contents.facts["file_systems"])
