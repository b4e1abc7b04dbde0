"""Roll-back: a snapshot replaces the running system, of which nothing is kept.

Without a hook the disks must be unchanged since the snapshot, up to the jump. All other processes are therefore
stopped, their writes are flushed, and the disks are checked again; if they have changed, the processes continue.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

from kjump.hibernate.report import Report
from kjump.hibernate.resume import check_disks, prepare_rollback
from kjump.host import root
from kjump.target import disks
from kjump.target.device import Target

_TIME_TO_STOP = 1.0
_PF_KTHREAD = 0x00200000


def rollback(
    target: Target, kernel: bytes, initrd: bytes, *, dry_run: bool = False, tell: Callable[[str], None] = lambda _: None
) -> None:
    """Replace this system by the snapshot on `target`; returns only for a `dry_run`, for which it may be read only.

    ImageError when the snapshot cannot be restored, HostError or PlanError when the restoring kernel cannot be started;
    this system is unchanged then. `tell` gets one line for each step.
    """
    disks.current().write_out()
    prepared = prepare_rollback(target, kernel, initrd)
    prepared.plan(Report())
    if dry_run:
        return
    tell("rolling back")
    if prepared.opened.contents.facts.hook:
        prepared.go(Report())
    with everyone_stopped():
        disks.current().write_out()
        check_disks(prepared.opened, cold=False)
        prepared.go(Report())


@contextlib.contextmanager
def everyone_stopped() -> Iterator[None]:
    """Stop all processes but init and this one; at the end continue those that were not stopped before.

    A process stops when it returns from the kernel to user space; this waits for that, for at most one second: a
    process cannot stop while its disk hangs, or while it waits for a stopped child (vfork).
    """
    stopped_before = {pid for pid in _processes() if _is_stopped(pid)}
    with contextlib.suppress(ProcessLookupError):  # there is no other process
        os.kill(-1, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + _TIME_TO_STOP
        while time.monotonic() < deadline and not all(map(_is_at_rest, set(_processes()) - {1, os.getpid()})):
            time.sleep(0.01)
        yield
    finally:
        # The processes of now, not those listed before: a new process may have been stopped too.
        for pid in set(_processes()) - stopped_before - {1, os.getpid()}:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir(root.at("/proc")) if name.isdecimal()]  # noqa: PTH208


def _is_stopped(pid: int) -> bool:
    return _status(pid)[0] == "T"


def _is_at_rest(pid: int) -> bool:
    """Tell whether a process is stopped, dead or gone, or is a kernel thread."""
    state, flags = _status(pid)
    return state in "TtZX" or bool(flags & _PF_KTHREAD)


def _status(pid: int) -> tuple[str, int]:
    """Return a process's state ("T": stopped) and flags from /proc/PID/stat (proc(5)); "X" (dead) when it is gone."""
    try:
        fields = root.at(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[6])
    except (OSError, IndexError):
        return "X", 0
