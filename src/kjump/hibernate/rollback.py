"""Roll back: this running system is replaced by a snapshot. Nothing of it comes back.

Without a hook the disks must be as the snapshot left them until the very jump. So everyone else is stopped, what they
had written is flushed, and the disks are looked at again; when they have changed, everyone goes on.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from kjump.hibernate.filetarget import open_for_image
from kjump.hibernate.hooks import Hook
from kjump.hibernate.resume import check_disks, prepare_rollback


def rollback(
    path: str, kernel: bytes, initrd: bytes, *, dry_run: bool = False, tell: Callable[[str], None] = lambda _: None
) -> None:
    """Replace this system by the snapshot on `path`; returns only for a `dry_run`.

    ImageError says why the snapshot cannot be gone back to, HostError and PlanError why C cannot be started: nothing
    is lost then. `tell` gets one line for each step.
    """
    os.sync()
    with open_for_image(path) as target:
        prepared = prepare_rollback(target, kernel, initrd)
        prepared.plan({})
        if dry_run:
            return
        tell("rolling back")
        if Hook.of_facts(prepared.opened.contents.facts):
            prepared.go({})
        with everyone_stopped():
            os.sync()
            check_disks(prepared.opened, cold=False)
            prepared.go({})


@contextlib.contextmanager
def everyone_stopped() -> Iterator[None]:
    """Stop all processes but init and this one; at the end let those go on that went before."""
    stopped_before = {pid for pid in _processes() if _state(pid) == "T"}
    with contextlib.suppress(ProcessLookupError):  # there is nobody else
        os.kill(-1, signal.SIGSTOP)
    try:
        yield
    finally:
        # Those that are there now, not those that were there before: a process may have been born in between.
        for pid in set(_processes()) - stopped_before - {1, os.getpid()}:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208


def _state(pid: int) -> str:
    """Return a process's state as /proc/PID/stat has it ("T": stopped), nothing when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
