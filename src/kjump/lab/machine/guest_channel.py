"""The host's end of the status channel: events of the guest, commands for it and their replies.

The guest's answers come on a virtio-serial port, and are not taken from the console. `LostMachineError` is a machine
that has ended; a command that failed in the guest is another error.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from kjump.errors import FormatError, LabError
from kjump.formats.record import Record
from kjump.lab.guest.messages import CommandEnd, CommandRequest

T = TypeVar("T")
PORT_NAME = "kjump.status"


class LostMachineError(LabError):
    """The machine ended, or did not answer within the timeout."""


@dataclass(frozen=True)
class GuestEvent:
    """An event from the guest: its `name`, its other `details`, and the time of its arrival (monotonic seconds)."""

    name: str
    details: Record
    time: float


@dataclass(frozen=True)
class CommandReply:
    """The end of a command in the guest: exit `status`, its output, the time of its arrival (monotonic seconds)."""

    status: int
    stdout: str
    stderr: str
    time: float

    def record(self, what: str) -> Record:
        """Return the JSON object that the command printed; `what` names it in messages. FormatError."""
        return Record.parse(self.stdout, what)


class GuestChannel:
    """The host's end of the status channel: events as they come, commands and their replies."""

    def __init__(self, connection: socket.socket, ending: Callable[[], str]) -> None:
        """Listen on `connection` in a thread; `ending` returns the reason why the machine ended."""
        self._socket = connection
        self._ending = ending
        self._changed = threading.Condition()
        self._ended = False
        self._wrong: FormatError | None = None
        self.events: list[GuestEvent] = []
        self._replies: dict[int, CommandReply] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError), self._socket.makefile("rb") as lines:
            for line in lines:
                self._take(line)
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _take(self, line: bytes) -> None:
        now = time.monotonic()
        try:
            message: object = json.loads(line)
        except ValueError:
            return  # a line cut short by a power-off
        with self._changed:
            try:
                self._keep(Record(message, "a line of the status channel"), now)
            except FormatError as error:
                self._wrong = error
            self._changed.notify_all()

    def _keep(self, message: Record, now: float) -> None:
        if "event" in message:
            self.events.append(GuestEvent(message.text("event"), message, now))
            return
        end = CommandEnd.from_json(message)
        self._replies[end.number] = CommandReply(end.status, end.stdout, end.stderr, now)

    def wait(self, found: Callable[[], T | None], what: str, timeout: float) -> T:
        """Wait until `found` returns something, and return that.

        LostMachineError when the machine ends or after `timeout` seconds; FormatError when the guest sent an invalid
        line.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                result = found()
                if result is not None:
                    return result
                if self._wrong is not None:
                    raise FormatError(f"waiting for {what}: {self._wrong}")
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    late = f"nothing came within {timeout:.0f} s"
                    why = f"the machine ended: {self._ending()}" if self._ended else late
                    raise LostMachineError(f"waiting for {what}: {why}")
                self._changed.wait(left)

    def seen(self, *names: str, since: float = 0.0) -> GuestEvent | None:
        """Return the first event with one of `names` that has arrived after (monotonic) `since`, or None."""
        return next((e for e in self.events if e.name in names and e.time >= since), None)

    def event(self, *names: str, timeout: float = 60.0, since: float = 0.0) -> GuestEvent:
        """Wait for the first event with one of `names` after (monotonic) `since`, and return it."""
        return self.wait(lambda: self.seen(*names, since=since), f"event {' or '.join(names)}", timeout)

    def start(self, *command: str) -> int:
        """Start `command` in the guest; return the number under which its reply will come."""
        request = CommandRequest(next(_numbers), command)
        self._socket.sendall(json.dumps(request.to_json()).encode() + b"\n")
        return request.number

    def finished(self, number: int) -> CommandReply | None:
        """Return the reply to command `number` if it has come."""
        return self._replies.get(number)

    def reply(self, number: int, timeout: float = 120.0) -> CommandReply:
        """Wait for the reply to command `number`, which may have been started in another machine, before a resume."""
        return self.wait(lambda: self.finished(number), f"reply {number}", timeout)

    def run(self, *command: str, timeout: float = 120.0, check: bool = True) -> CommandReply:
        """Run `command` in the guest to its end; LabError when `check` is set and it fails."""
        reply = self.reply(self.start(*command), timeout)
        if check and reply.status:
            raise LabError(f"in the guest `{' '.join(command)}` exited {reply.status}: {reply.stderr.strip()}")
        return reply


_numbers = itertools.count(int(time.time()) << 8)
"""Numbers of commands. They begin with the time, so that a saved machine's commands differ from those of a later
process of the lab, in which the machine is resumed."""
