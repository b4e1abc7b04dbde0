"""The resident role: B boots once, does the job that comes with each switch, and waits between them.

What a job raises goes to A with the reason, and B stays. What would have to be guessed at (a hang, a job past its time
limit, a panic, a kernel that refuses to leave by its door) ends its residency: A is back with the reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib  # noqa: F401  # a job asks for it when it runs: here it is imported before B parks
import os
import threading

from kjump.errors import KjumpError
from kjump.formats.record import Record
from kjump.hibernate.after_jump import reseed
from kjump.hibernate.jobs import WHAT, Assignment, NoJob
from kjump.hibernate.report import Report
from kjump.host import procfs
from kjump.init.jobs import Done, Work, do
from kjump.init.peer_link import Answer, Residence
from kjump.init.roles.second import account_of
from kjump.init.system import Role, uptime
from kjump.init.watchdog import Guard
from kjump.kexec.channel import Parcel
from kjump.kexec.mailbox import Outcome


def run(role: Role) -> None:
    """Serve A for ever; returns only when even the way back is closed."""
    residence = Residence.here()
    order = residence.channel.order()
    try:
        residence.load_door()
        residence.cover_crash()
    except BaseException as error:
        residence.leave(Answer(*account_of(error)))
        return
    boot_seconds = uptime()
    while True:
        _reap()
        visit = _Visit(role, residence, order)
        answer = visit.work()
        report = dataclasses.replace(answer.report, boot_seconds=boot_seconds)
        order = visit.leave(dataclasses.replace(answer, report=report))
        boot_seconds = 0.0


def _reap() -> None:
    """Take leave of what earlier jobs left in the background and has ended: PID 1 is its parent."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


class _Visit:
    """One stay of B's: from A's order to the answer."""

    def __init__(self, role: Role, residence: Residence, order: Parcel) -> None:
        self._role = role
        self._residence = residence
        self._order = order
        self._guard = Guard()
        self._leaving = threading.Lock()
        self._left = False

    def work(self) -> Answer:
        """Do what A ordered."""
        try:
            assignment = Assignment.from_json(Record(self._order.content, WHAT))
            if assignment.seed:
                with contextlib.suppress(OSError):
                    reseed(assignment.seed)
            self._watch(assignment)
            done = self._do(assignment)
            return Answer(Outcome.DONE, done.report, done.message)
        except BaseException as error:
            return Answer(*account_of(error))

    def _do(self, assignment: Assignment) -> Done:
        head = self._residence.channel.head
        work = Work(self._role, self._residence.look_again(), head, self._guard, self._order.message)
        return do(work, assignment.job)

    def _watch(self, assignment: Assignment) -> None:
        if self._residence.cover_crash():
            # Should we panic, nobody here can say why: A reads our log, and finds it by this.
            self._residence.channel.note(Report(vmcoreinfo=procfs.vmcoreinfo_place()).to_json())
            if not isinstance(assignment.job, NoJob) and assignment.watchdog:
                self._guard.start_watchdog(assignment.watchdog)
        limit = assignment.time_limit
        if limit:
            self._guard.limit(limit, lambda: self._expired(limit))

    def _expired(self, seconds: float) -> None:
        reason = f"the job took longer than its time limit of {seconds:.0f} s"
        with self._leaving:
            if self._left:
                return  # the job ended while the clock struck
            self._guard.end()
            self._residence.leave(Answer(Outcome.FAILED, Report(reason=reason)))

    def leave(self, answer: Answer) -> Parcel:
        """Go to A with `answer`; return the next order."""
        with self._leaving:
            self._left = True
            self._guard.end()
            try:
                return self._residence.away(answer)
            except KjumpError as error:
                reason = f"the second kernel could not stay: {error}"
                self._residence.leave(Answer(Outcome.FAILED, Report(reason=reason)))
                raise
