"""What may go wrong on a simulated machine, at one thing that a kernel asks of it."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

from scenarios import Interrupted
from simdisk import Kept
from simmachine import Fault, Machine
from simmemory import MAILBOX

from kjump.errors import HostError

ON_DISK = {"read", "pages read", "write", "flush", "stream begins", "stream"}


def power_cut(kept: Kept, *, before: bool = False) -> Fault:
    """Lose the power when that is done, or before it is."""

    def fault(machine: Machine, what: str, do: Callable[[], None]) -> None:
        if not before:
            do()
        machine.cut(kept)

    return fault


def failing(number: int, *, done: bool = False) -> Fault:
    """Let the operation fail, with `done` although it was done; the machine refuses what has no error number."""

    def fault(machine: Machine, what: str, do: Callable[[], None]) -> None:
        machine.troubles += 1
        if done or what == "stream":
            do()
        if what in ON_DISK:
            raise OSError(number, os.strerror(number))
        raise HostError(f"{what}: refused ({errno.errorcode[number]})")

    return fault


def panic(machine: Machine, what: str, do: Callable[[], None]) -> None:
    """Let the kernel panic."""
    do()
    machine.panic()


def raising(error: BaseException) -> Fault:
    """Let A's command be surprised, where it is A's; else nothing happens."""

    def fault(machine: Machine, what: str, do: Callable[[], None]) -> None:
        do()
        if machine.kernel.name == "A" and what == "unload":
            raise error

    return fault


# --- in A, when it is back -----------------------------------------------------------------------------------------


def interrupt(machine: Machine) -> Callable[[], None]:
    """Press Ctrl-C."""
    return lambda: signal.raise_signal(signal.SIGINT)


def terminate(machine: Machine) -> Callable[[], None]:
    """Send SIGTERM to a command that has a handler for it."""

    def handler(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Interrupted

    def send() -> None:
        signal.signal(signal.SIGTERM, handler)
        signal.raise_signal(signal.SIGTERM)

    return send


def damage(machine: Machine) -> Callable[[], None]:
    """Overwrite the report in the mailbox."""
    return lambda: machine.memory.write(MAILBOX + 0x20, b"\xff" * 8)


def overwrite(machine: Machine) -> Callable[[], None]:
    """Overwrite all of the mailbox."""
    return lambda: machine.memory.write(MAILBOX, b"\xff" * 4096)


def deaf(machine: Machine) -> Callable[[], None]:
    """Close the terminal: whatever is told raises."""

    def tell(text: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def back() -> None:
        machine.tell = tell

    return back


def sick_disk(machine: Machine) -> Callable[[], None]:
    """Let some of the next things that are done fail, four at most: A tries five times."""

    def back() -> None:
        first = len(machine.log) + machine.chance.randrange(1, 4)
        for number in range(first, first + machine.chance.randrange(1, 5)):
            machine.faults[number] = failing(errno.EIO)

    return back


def interrupt_later(machine: Machine) -> Callable[[], None]:
    """Press Ctrl-C while one of the next things is done."""

    def fault(machine: Machine, what: str, do: Callable[[], None]) -> None:
        if machine.kernel.name == "A":
            signal.raise_signal(signal.SIGINT)
        do()

    def back() -> None:
        machine.faults[len(machine.log) + machine.chance.randrange(1, 5)] = fault

    return back


ON_RETURN = (interrupt, terminate, damage, overwrite, deaf, sick_disk, interrupt_later)
"""Each returns what happens when A's jump has returned."""
