"""The second role, B's: do the job that A gave, go back to A and say what came of it.

Whatever a job raises ends in A with the reason, and so do a panic, a hang and a job past its time limit. What a job
may be is in `kjump.init.jobs`.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace

from kjump.errors import UsageError
from kjump.formats.record import Record
from kjump.hibernate.report import Report
from kjump.host import procfs
from kjump.image.save import SaveCancelled
from kjump.init.jobs import Work, do
from kjump.init.leave import failure_of, gate_of
from kjump.init.system import Role, uptime
from kjump.init.watchdog import Guard
from kjump.kexec import loader, mailbox
from kjump.kexec.mailbox import Outcome
from kjump.kexec.way_back import OPTION
from kjump.target.states import Departure


def run(role: Role) -> None:
    """Do the job; returns only when even the way back is closed."""
    way = _WayBack(role)
    try:
        gate = gate_of(way.place)
        way.box = box = mailbox.PeerMailbox.at_physical(gate.mailbox, gate.cookie)
        message = box.message
        departure = Departure.from_json(Record(message, "what was said at the jump")) if message else None
        way.watch(box)
        done = do(Work(role, gate, box.head, way.guard, departure=departure), role.assignment.job)
        way.leave(Outcome.DONE, done.report)
    except BaseException as error:
        way.leave(*account_of(error))


class _WayBack:
    """The ways back to A, which are open: taken once, by the job's end or by its time limit."""

    def __init__(self, role: Role) -> None:
        if role.way_back is None:
            raise UsageError(f"this kernel was not started by kjump (no {OPTION}= on its command line)")
        self.place = role.way_back
        self.role = role
        self.box: mailbox.PeerMailbox | None = None
        self.guard = Guard()
        self._boot_seconds = uptime()
        self._leaving = threading.Lock()

    def watch(self, box: mailbox.PeerMailbox) -> None:
        """Let the guard watch over the job."""
        if loader.current().is_loaded(on_crash=True):
            # Should we panic, nobody here can say why: A reads our log, and finds it by this.
            noted = Report(boot_seconds=self._boot_seconds, vmcoreinfo=procfs.vmcoreinfo_place())
            box.report(Outcome.NONE, noted.to_json())
            if self.role.assignment.watchdog:
                self.guard.start_watchdog(self.role.assignment.watchdog)
        limit = self.role.assignment.time_limit
        if limit:
            self.guard.limit(limit, lambda: self._expired(limit))

    def _expired(self, seconds: float) -> None:
        reason = f"the job took longer than its time limit of {seconds:.0f} s"
        self.leave(Outcome.FAILED, Report(reason=reason))

    def leave(self, outcome: Outcome, report: Report) -> None:
        """Go back to A with `report`; the second caller waits for what the first is doing.

        Nothing that fails on the way out keeps us here: A says that there was no report.
        """
        with self._leaving:
            with contextlib.suppress(Exception):
                self.guard.end()
            self._tell(outcome, replace(report, boot_seconds=self._boot_seconds))
            with contextlib.suppress(Exception):
                self.role.console.line("kjump: going back to the first system")
                self.role.status.send("going-back")
            loader.current().jump()

    def _tell(self, outcome: Outcome, report: Report) -> None:
        """Leave `report` for A, or what kept it from being written; on the console when there is no mailbox."""
        with contextlib.suppress(Exception):
            if self.box is None:
                self.role.console.line(f"kjump: {report.reason or 'the mailbox was not found'}")
                return
            try:
                self.box.report(outcome, report.to_json())
            except Exception as error:
                self.box.report(Outcome.FAILED, failure_of(error).to_json())


def account_of(error: BaseException) -> tuple[Outcome, Report]:
    """Return the outcome that A finds in the mailbox when a job raised `error`, and what to say of it."""
    if isinstance(error, SaveCancelled):
        return Outcome.CANCELLED, Report(reason=str(error))
    return Outcome.FAILED, failure_of(error)
