"""A guest that is only simulated: it speaks the status channel's protocol, and answers commands from a table."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType

from kjump.formats.record import Record
from kjump.lab.guest.messages import CommandEnd, CommandRequest
from kjump.lab.machine.guest_channel import GuestChannel

Answer = tuple[int, str, str] | None
"""Exit status, standard output and error of a command; None when it does not end."""


class SimulatedMachine:
    """Stands in for a VirtualMachine: `events` are sent as it boots, `answer` is asked for each command.

    `answer` may call `send` for events that a command brings. Numbers of commands that never ended are in `unfinished`.
    """

    def __init__(
        self,
        answer: Callable[[SimulatedMachine, Sequence[str]], Answer],
        events: Iterable[str | dict[str, object]] = ("ready",),
        *,
        ending: str = "guest-shutdown",
        console: str = "",
    ) -> None:
        self._answer = answer
        self._events = list(events)
        self._ending = ending
        self._console = console
        self.unfinished: list[int] = []
        self.started = 0.0

    def __enter__(self) -> SimulatedMachine:
        host, self._guest = socket.socketpair()
        self._host = host
        self.guest = GuestChannel(host, lambda: self._ending)
        for event in self._events:
            self.send(event)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._guest.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._guest.close()

    def send(self, message: str | dict[str, object]) -> None:
        """Send an event, by its name or as a whole."""
        line = {"event": message} if isinstance(message, str) else message
        self._guest.sendall(json.dumps(line).encode() + b"\n")

    def end(self, number: int, status: int, stdout: str, stderr: str = "") -> None:
        """End a command."""
        self.send({**CommandEnd(number, status, stdout, stderr).to_json()})

    def _serve(self) -> None:
        with self._guest.makefile("rb") as lines:
            for line in lines:
                request = CommandRequest.from_json(Record.parse(line, "a request"))
                answer = self._answer(self, request.command)
                if answer is None:
                    self.unfinished.append(request.number)
                else:
                    self.end(request.number, *answer)

    def wait_off(self, timeout: float = 60.0) -> str:
        return self._ending

    def power_off(self, timeout: float = 180.0) -> str:
        return self._ending

    def console(self) -> str:
        return self._console

    def go_on(self) -> None: ...

    def kill(self) -> None: ...

    def save_state(self, path: Path) -> None:
        path.write_bytes(b"state")
