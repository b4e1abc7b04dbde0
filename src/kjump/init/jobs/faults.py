"""Faults that a job is asked to have, for tests: each is the real thing.

A fault is `KIND`, `KIND:CPU` or with `@SHARE` behind it: then it happens when that share of the work is done.
"""

from __future__ import annotations

import ctypes
import os
import time

from kjump.host import root
from kjump.init.system import mount

_DEBUGFS = "/sys/kernel/debug"


class Fault:
    """What shall go wrong, and when."""

    def __init__(self, text: str) -> None:
        """Read `text`; an empty one is no fault at all."""
        kind, _, share = text.partition("@")
        self.kind, _, cpu = kind.partition(":")
        self.share = float(share or 0)
        self.cpu = int(cpu or 0)

    def due(self, share: float) -> None:
        """Let it happen if `share` of the work (0 to 1) is done and that is the moment."""
        if self.kind and share >= self.share:
            kind, self.kind = self.kind, ""
            _KINDS[kind](self.cpu)


def _exception(_: int) -> None:
    raise RuntimeError("an exception was asked for by the job")


def _panic(cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})
    root.at("/proc/sysrq-trigger").write_text("c")


def _hang(_: int) -> None:
    time.sleep(1 << 20)


def _hold_interpreter(_: int) -> None:
    ctypes.PyDLL(None).sleep(1 << 20)  # PyDLL keeps the interpreter's lock: no thread of ours runs any more


def _spin(cpu: int) -> None:
    """Let `cpu` spin with interrupts off, as a driver's worst bug would (LKDTM does it)."""
    mount("debugfs", _DEBUGFS, "debugfs")
    os.sched_setaffinity(0, {cpu})
    root.at(f"{_DEBUGFS}/provoke-crash/DIRECT").write_text("HARDLOCKUP")


_KINDS = {
    "exception": _exception,
    "panic": _panic,
    "hang": _hang,
    "hold": _hold_interpreter,
    "spin": _spin,
}
