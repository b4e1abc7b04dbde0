"""PID 1 of the lab's systems: whatever comes on the status channel, it answers and goes on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from kjump.formats.record import Record
from kjump.lab.guest.agent import Agent
from kjump.lab.guest.messages import CommandEnd, CommandRequest


@pytest.fixture
def ends() -> Iterator[tuple[Agent, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(30)
        yield Agent(theirs.fileno()), ours


def answer(ends: tuple[Agent, socket.socket], line: bytes) -> Record:
    agent, host = ends
    agent.take(line)
    with host.makefile("rb") as lines:
        return Record.parse(lines.readline(), "an answer")


def end_of(ends: tuple[Agent, socket.socket], *command: str) -> CommandEnd:
    request = CommandRequest(7, command)
    return CommandEnd.from_json(answer(ends, json.dumps(request.to_json()).encode()))


def test_the_end_of_a_command_comes_back(ends: tuple[Agent, socket.socket]) -> None:
    assert end_of(ends, "sh", "-c", "echo out; echo err >&2; exit 3") == CommandEnd(7, 3, "out\n", "err\n")
    assert end_of(ends, "sh", "-c", "kill -9 $$").status == -9


@pytest.mark.parametrize("command", [("/no/such",), ("/bin/echo", "a\0b"), (), ("/",)])
def test_what_cannot_be_run_is_a_status(ends: tuple[Agent, socket.socket], command: tuple[str, ...]) -> None:
    end = end_of(ends, *command)
    assert end.status == 127 and end.stdout == "" and "cannot run" in end.stderr


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b'{"id": 7}', b'{"id": "7", "run": []}', b'{"id": 7, "run": [1]}'])
def test_what_is_no_request_is_refused(ends: tuple[Agent, socket.socket], line: bytes) -> None:
    refused = answer(ends, line)
    assert refused.text("event") == "request-refused" and refused.text("reason").startswith("a request: ")
