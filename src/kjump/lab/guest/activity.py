"""Parts of the workloads: processes that count their steps, and the account of their state.

The imports are limited to what fits in a small initramfs.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ParamSpec

from kjump.formats.record import JsonObject, Record
from kjump.lab.checks import Checked

P = ParamSpec("P")


@dataclass(frozen=True)
class WorkloadAccount(Checked):
    """The state of a workload: whether its `checks` hold, by name, and the `counters` of its processes.

    `pages` are the page frames of its memory with a known pattern (0: not in memory); empty when it has none.
    """

    checks: Mapping[str, bool]
    counters: Mapping[str, int]
    pages: tuple[int, ...] = ()

    def to_json(self) -> JsonObject:
        """Return it as a JSON object."""
        return {"checks": dict(self.checks), "counters": dict(self.counters), "pages": list(self.pages)}

    @classmethod
    def from_json(cls, record: Record) -> WorkloadAccount:
        """Read what `to_json` made; FormatError."""
        checks, counters = record.record("checks"), record.record("counters")
        return cls(
            checks={name: checks.flag(name) for name in checks.names()},
            counters={name: counters.integer(name) for name in counters.names()},
            pages=record.integers("pages"),
        )


class CounterBoard:
    """Counters with names, in memory that all processes of a workload share."""

    def __init__(self, names: tuple[str, ...], memory: mmap.mmap) -> None:
        """Keep the counters `names` at the beginning of `memory`."""
        self._names = names
        self._memory = memory

    def add(self, name: str) -> None:
        """Count one more; each counter has one process that counts in it."""
        at = self._names.index(name) * 8
        (old,) = struct.unpack_from("<Q", self._memory, at)
        struct.pack_into("<Q", self._memory, at, old + 1)

    def values(self) -> dict[str, int]:
        """Return all counters."""
        return dict(zip(self._names, struct.unpack_from(f"<{len(self._names)}Q", self._memory), strict=True))


def spawn(function: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> int:
    """Run `function` in a process of its own, which must not return; return the process' number."""
    pid = os.fork()
    if pid == 0:
        try:
            function(*arguments, **named)
        finally:
            os._exit(1)
    return pid


def detach() -> None:
    """Leave the caller's session and its pipes, whose reader would otherwise wait for the end of this process."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)


def start_time(pid: int) -> str:
    """Return the start time of a process in clock ticks since boot, which differs if its number has been reused."""
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().rsplit(")", 1)[1].split()[19]
    except OSError:
        return ""


def numbered_lines(path: str) -> int | None:
    """Return the number of complete lines "line 0", "line 1", ... in a file; None when there is any other line."""
    with open(path) as file:  # noqa: PTH123
        text = file.read()
    complete = text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]
    return len(complete) if complete == [f"line {n}" for n in range(len(complete))] else None
