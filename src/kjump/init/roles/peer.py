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
from typing import Any

from kjump.errors import KjumpError
from kjump.hibernate.after_jump import reseed
from kjump.host import procfs
from kjump.init.jobs import JOBS, Work
from kjump.init.peer_link import Answer, Residence
from kjump.init.roles.second import account_of
from kjump.init.system import Role, uptime
from kjump.init.watchdog import Guard
from kjump.kexec import mailbox
from kjump.kexec.channel import Parcel


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
    extra: dict[str, Any] = {"boot_seconds": uptime()}
    while True:
        _reap()
        visit = _Visit(role, residence, order)
        answer = visit.work()
        order = visit.leave(dataclasses.replace(answer, words=extra | answer.words))
        extra = {}


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
        self._role = dataclasses.replace(role, job=order.words)
        self._residence = residence
        self._order = order
        self._guard = Guard()
        self._leaving = threading.Lock()
        self._left = False

    def work(self) -> Answer:
        """Do what A ordered."""
        seed = bytes.fromhex(self._role.job.pop("seed", ""))
        if seed:
            with contextlib.suppress(OSError):
                reseed(seed)
        try:
            self._watch()
            words, message = self._do(self._role.job.get("do", "none"))
            return Answer(mailbox.OUTCOME_DONE, words, message)
        except BaseException as error:
            return Answer(*account_of(error))

    def _do(self, job: str) -> tuple[dict[str, Any], bytes]:
        if job not in JOBS:
            raise KjumpError(f"there is no job called {job}; there are {', '.join(sorted(JOBS))}")
        channel = self._residence.channel
        words = self._role.job.get("words", {})
        work = Work(
            self._role, self._residence.look_again(), channel.head, self._guard, self._order.message, words=words
        )
        done = JOBS[job](work)
        message = done.pop("message", b"")
        return done, message

    def _watch(self) -> None:
        job = self._role.job
        if self._residence.cover_crash():
            # Should we panic, nobody here can say why: A reads our log, and finds it by this.
            self._residence.channel.note({"vmcoreinfo": procfs.vmcoreinfo_place()})
            if job.get("do", "none") != "none" and job.get("watchdog"):
                self._guard.start_watchdog(int(job["watchdog"]))
        limit = float(job.get("time_limit", 0))
        if limit:
            self._guard.limit(limit, lambda: self._expired(limit))

    def _expired(self, seconds: float) -> None:
        reason = f"the job took longer than its time limit of {seconds:.0f} s"
        with self._leaving:
            if self._left:
                return  # the job ended while the clock struck
            self._guard.end()
            self._residence.leave(Answer(mailbox.OUTCOME_FAILED, {"reason": reason}))

    def leave(self, answer: Answer) -> Parcel:
        """Go to A with `answer`; return the next order."""
        with self._leaving:
            self._left = True
            self._guard.end()
            try:
                return self._residence.away(answer)
            except KjumpError as error:
                reason = f"the second kernel could not stay: {error}"
                self._residence.leave(Answer(mailbox.OUTCOME_FAILED, {"reason": reason}))
                raise
