"""The second role, B's: do the job that A gave, go back to A and say what came of it.

Whatever a job raises ends in A with the reason. What a job may be is in `kjump.roles.jobs`.
"""

from __future__ import annotations

import traceback
from typing import Any

from kjump.errors import KjumpError
from kjump.gates import GATE_SIZE, Gate
from kjump.hibernate.save import SaveCancelled
from kjump.kexec import host, mailbox
from kjump.kexec.linux import way_back_plan
from kjump.roles.jobs import JOBS, Work
from kjump.roles.system import Role, read_physical, uptime


def run(role: Role) -> None:
    """Do the job; returns only when even the way back is closed."""
    gate_at = int(role.job["gate"])
    gate = Gate.unpack(read_physical(gate_at, GATE_SIZE))
    box = mailbox.PeerMailbox(gate.mailbox, gate.cookie)
    outcome, report = mailbox.OUTCOME_FAILED, {"boot_seconds": uptime()}
    try:
        host.load(way_back_plan(gate_at, gate))
        report |= JOBS[role.job["do"]](Work(role, gate, box.head))
        outcome = mailbox.OUTCOME_DONE
    except BaseException as error:
        outcome, why = _account_of(error)
        report |= why
    box.report(outcome, report)
    role.console.line("kjump: going back to A")
    role.status.send("going-back")
    host.jump()


def _account_of(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Return the outcome that A finds in the mailbox when a job raised `error`, and what to say of it."""
    if isinstance(error, SaveCancelled):
        return mailbox.OUTCOME_CANCELLED, {"reason": str(error)}
    if isinstance(error, KjumpError):
        return mailbox.OUTCOME_FAILED, {"reason": str(error)}
    where = "".join(traceback.format_exception(error)[-3:])
    reason = f"unexpected {type(error).__name__} in the second kernel: {error}"
    return mailbox.OUTCOME_FAILED, {"reason": reason, "traceback": where[-1500:]}
