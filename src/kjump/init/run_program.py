"""A program run by a role: its output is kept, and it has a time limit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kjump.errors import HostError

_OUTPUT = Path("/tmp/command-output")


@dataclass(frozen=True)
class Done:
    """How a program ended: its exit `status` (128 + the number of the signal that killed it), all that it printed."""

    status: int
    output: str


def run(arguments: Sequence[str], environment: Mapping[str, str], *, timeout: float) -> Done:
    """Run a program to its end; HostError when it cannot be started, or still runs after `timeout` seconds."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    out = os.open(_OUTPUT, flags, 0o600)
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, out, 2)]
        child = os.posix_spawnp(arguments[0], list(arguments), dict(environment), file_actions=actions, setpgroup=0)
    except OSError as error:
        raise HostError(f"cannot run {arguments[0]}: {error.strerror}") from None
    finally:
        os.close(null)
        os.close(out)
    status = _wait(child, timeout)
    output = _OUTPUT.read_text(errors="replace")
    if status is None:
        raise HostError(f"{' '.join(arguments)} was ended: it still ran after {timeout:.0f} s; {_last(output)}")
    return Done(status, output)


def _wait(child: int, timeout: float) -> int | None:
    """Return how `child` ended, or None when it had to be killed."""
    deadline = time.monotonic() + timeout
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.01)


def require(arguments: Sequence[str], environment: Mapping[str, str], *, timeout: float, what: str) -> None:
    """Run a program that must succeed; HostError names it by `what`, with its exit status and last words."""
    done = run(arguments, environment, timeout=timeout)
    if done.status:
        raise HostError(f"{what} ended with exit status {done.status}; {_last(done.output)}")


def _last(output: str) -> str:
    words = output.strip()
    return f"its last words: {words[-600:]}" if words else "it printed nothing"
