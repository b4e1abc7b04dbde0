"""The restorer role, in C: put A's pages where they belong, mark the image consumed, jump to A.

Until the jump a failure leaves the image marked as attempted, with the reason, and the machine restarts:
the next boot is an ordinary one, and says so. A snapshot's image is neither marked nor consumed; how often it was
rolled back to is counted. Its hook comes first, and must make the file systems what they were.
"""

from __future__ import annotations

import time
from dataclasses import replace

from kjump.errors import UsageError
from kjump.formats.superblock import State
from kjump.hibernate.hooks import HOOK, TIMEOUT, environment
from kjump.hibernate.jobs import RestoreJob
from kjump.hibernate.report import Report
from kjump.image.destination import InPlace
from kjump.image.facts import Kind
from kjump.image.restore import OpenImage, open_image, own_memory
from kjump.init import run_program
from kjump.init.finish_restore import bring_back, failures_noted
from kjump.init.system import Role, uptime
from kjump.target import filesystems
from kjump.target.device import Target, find_target

_TARGET_TIMEOUT = 5.0


def run(role: Role) -> None:
    """Restore A and jump to it; raises when that is impossible, after saying so in the superblock."""
    job = role.assignment.job
    if not isinstance(job, RestoreJob):
        raise UsageError("this kernel was given no image to restore: it is for kjump's own use")
    report = replace(job.report, boot_seconds=uptime())
    with find_target(job.cookie, job.target, timeout=_TARGET_TIMEOUT) as target, failures_noted(target):
        _restore(role, job, target, report)


def _restore(role: Role, job: RestoreJob, target: Target, report: Report) -> None:
    snapshot = job.kind is Kind.SNAPSHOT
    opened = open_image(target, states=(State.SNAPSHOT if snapshot else State.ATTEMPTED,))
    if snapshot:
        report = replace(report, hook_seconds=_put_file_systems_back(role, opened))
    system = opened.contents.facts.system
    own = own_memory(system.window, system.low)
    with InPlace(opened.contents, own, role.assignment.gate) as landing:
        bring_back(role, target, opened, landing, report)


def _put_file_systems_back(role: Role, opened: OpenImage) -> float:
    """Run the snapshot's hook if it has one, and see that each file system is the one that A remembers.

    Returns the seconds that the hook took, 0 without one.
    """
    begun, seconds = time.monotonic(), 0.0
    hook = opened.contents.facts.hook
    if HOOK.exists():
        role.console.line("kjump: the hook puts file systems back")
        timeout = hook.timeout if hook else TIMEOUT
        run_program.require([str(HOOK), "restore"], environment(), timeout=timeout, what="the hook")
        seconds = round(time.monotonic() - begun, 3)
    filesystems.check(opened.contents.facts.file_systems)
    return seconds
