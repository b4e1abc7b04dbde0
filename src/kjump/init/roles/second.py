"""The second role, B's: do the job that A gave, go back to A and say what came of it.

Whatever a job raises ends in A with the reason, and so do a panic, a hang and a job past its time limit. What a job
may be is in `kjump.init.jobs`.
"""

from __future__ import annotations

import threading
from typing import Any

from kjump.errors import KjumpError
from kjump.gates import GATE_SIZE, Gate
from kjump.host import procfs
from kjump.image.save import SaveCancelled
from kjump.init.jobs import JOBS, Work
from kjump.init.system import Role, read_physical, uptime
from kjump.init.watchdog import Guard
from kjump.kexec import mailbox, syscalls
from kjump.kexec.linux import crash_plan, way_back_plan


def run(role: Role) -> None:
    """Do the job; returns only when even the way back is closed."""
    gate_at = int(role.job["gate"])
    gate = Gate.unpack(read_physical(gate_at, GATE_SIZE))
    way = _WayBack(role, mailbox.PeerMailbox.at_physical(gate.mailbox, gate.cookie))
    try:
        words = way.box.words
        way.open(gate_at, gate)
        done = JOBS[role.job["do"]](Work(role, gate, way.box.head, way.guard, words=words))
        way.leave(mailbox.OUTCOME_DONE, done)
    except BaseException as error:
        way.leave(*account_of(error))


class _WayBack:
    """The ways back to A: taken once, by the job's end or by its time limit."""

    def __init__(self, role: Role, box: mailbox.PeerMailbox) -> None:
        self.role = role
        self.box = box
        self.guard = Guard()
        self._report: dict[str, Any] = {"boot_seconds": uptime()}
        self._leaving = threading.Lock()

    def open(self, gate_at: int, gate: Gate) -> None:
        """Load the program that leads to A, into the crash slot too, and let the guard watch."""
        syscalls.load(way_back_plan(gate_at, gate))
        crash_kernel = procfs.crash_kernel()
        if crash_kernel is not None:
            # Should we panic, nobody here can say why: A reads our log, and finds it by this.
            self.box.report(mailbox.OUTCOME_NONE, self._report | {"vmcoreinfo": procfs.vmcoreinfo_place()})
            syscalls.load(crash_plan(crash_kernel, gate))
            self.guard.start_watchdog(int(self.role.job["watchdog"]))
        limit = float(self.role.job["time_limit"])
        self.guard.limit(limit, lambda: self._expired(limit))

    def _expired(self, seconds: float) -> None:
        reason = f"the job took longer than its time limit of {seconds:.0f} s"
        self.leave(mailbox.OUTCOME_FAILED, {"reason": reason})

    def leave(self, outcome: int, report: dict[str, Any]) -> None:
        """Go back to A with `report`; the second caller waits for what the first is doing."""
        with self._leaving:
            self.guard.disarm()
            self.guard.stop_watchdog()
            self.box.report(outcome, self._report | report)
            self.role.console.line("kjump: going back to the first system")
            self.role.status.send("going-back")
            syscalls.jump()


def account_of(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Return the outcome that A finds in the mailbox when a job raised `error`, and what to say of it."""
    if isinstance(error, SaveCancelled):
        return mailbox.OUTCOME_CANCELLED, {"reason": str(error)}
    if isinstance(error, KjumpError):
        return mailbox.OUTCOME_FAILED, {"reason": str(error)}
    import traceback

    where = "".join(traceback.format_exception(error)[-3:])
    reason = f"unexpected {type(error).__name__} in the second kernel: {error}"
    return mailbox.OUTCOME_FAILED, {"reason": reason, "traceback": where[-1500:]}
