"""What goes between guest and host: read back as it was written, and refused when it is anything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Protocol

import pytest

from kjump.errors import FormatError
from kjump.formats.record import JsonObject, Record
from kjump.kexec.plan import Plan, Segment
from kjump.lab.guest.activity import WorkloadAccount
from kjump.lab.guest.memory_digest import MemoryDigests
from kjump.lab.guest.messages import CommandEnd, CommandRequest
from kjump.lab.guest.switch_rounds import SwitchRounds
from kjump.lab.guest.ticker import Pause, Ticker
from kjump.lab.plan_replay import KernelRun
from kjump.lab.reports import BootedPeer, CallReport, HibernateReport, SavedBytes, SnapshotReport
from kjump.lab.swsusp import SwsuspRefusal


class Message(Protocol):
    def to_json(self) -> JsonObject: ...


PLAN = Plan(0x2000, (Segment(0x1000, 8192, b"\x90\xc3", "program"),), 62 << 16 | 2)
MESSAGES: list[Message] = [
    CommandRequest(7, ("kjump", "status")),
    CommandEnd(7, -9, "out", "err"),
    WorkloadAccount({"counting": True, "file": False}, {"counter": 12}, (0, 4711)),
    MemoryDigests("aa", "bb", 4096, "cc"),
    SwitchRounds((900_000, 412_345), (1 << 30,), 0, {"B": 2}),
    Ticker(77, 0x7F00_0000_1000, 0x1234, 2.5e9),
    Pause((5, 6), 100, 200),
    KernelRun(PLAN, (0x8000,), bytes(range(16)), (b"one", b"\xff"), 8, b"ONE"),
]


def back(message: Message, value: JsonObject) -> Message:
    read: Callable[[Record], Message] = type(message).from_json  # type: ignore[attr-defined]
    return read(Record.parse(json.dumps(value), "a message"))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    assert back(message, message.to_json()) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_missing_or_wrong_field_is_named(message: Message) -> None:
    for name in message.to_json():
        wrongs: list[JsonObject] = [{}, {name: {"no": "such"}}, {name: None}]
        for wrong in wrongs:
            rest = {key: value for key, value in message.to_json().items() if key != name}
            with pytest.raises(FormatError, match=f"a message: {name}\\b"):
                back(message, rest | wrong)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (CommandEnd(7, 0, "", ""), {"status": 256}),
        (CommandEnd(7, 0, "", ""), {"id": -1}),
        (MemoryDigests("aa", "bb", 1, "cc"), {"bytes": 0}),
        (Pause((1,), 100, 200), {"ended": 99}),
        (Pause((1,), 100, 200), {"values": [1, 2, 3]}),
        (Ticker(1, 0, 1, 1e9), {"rate": 0}),
        (MESSAGES[-1], {"cookie": "00"}),
        (MESSAGES[-1], {"args": ["xy"]}),
    ],
)
def test_a_value_out_of_range_is_refused(message: Message, change: JsonObject) -> None:
    with pytest.raises(FormatError):
        back(message, message.to_json() | change)


def test_reports_of_commands_are_read_as_far_as_they_are_needed() -> None:
    saved = {"saved": {"kept_bytes": 200, "image_bytes": 100, "level": 1}, "boot_seconds": 1.5}
    phases = {"prepare": 0.5, "away": 9, "again": 0}
    hibernated = {"resumed": True, "window_bytes": 1 << 27, "reason": "", "phases": phases, "report": saved}
    read = HibernateReport.from_json(Record(hibernated, "it"))
    assert read == HibernateReport(True, 1 << 27, 0.5, 0.0, SavedBytes(kept=200, image=100))
    assert HibernateReport.from_json(Record(hibernated | {"report": {}}, "it")).saved is None
    with pytest.raises(FormatError, match="it: phases: prepare is missing"):
        HibernateReport.from_json(Record(hibernated | {"phases": {}}, "it"))

    taken = {"taken": True, "rolled_back": False, "count": 0, "kind": "snapshot", "target": "/dev/vdc"}
    rest = {"phases": {"pause": 1.25}, "stamps": {"left": 1, "entered": 2}, "report": saved}
    snapshot = SnapshotReport.from_json(Record(taken | rest, "it"))
    assert (snapshot.entered, snapshot.pause, snapshot.saved) == (2, 1.25, SavedBytes(200, 100))
    less = {"stamps": {"left": 1}, "report": {}, "phases": {"prepare": 0.1}}
    rolled_back = SnapshotReport.from_json(Record(taken | less, "it"))
    assert (rolled_back.entered, rolled_back.pause, rolled_back.saved) == (0, 0.0, None)

    peer = BootedPeer.from_json(Record({"peer": "B", "report": {"release": "6.12.1", "boot_seconds": 2}}, "it"))
    assert peer == BootedPeer("B", "6.12.1", 2.0)
    call = {"value": 42, "output": "", "began": 1.5, "seconds": 0.25, "tsc_in": 1, "tsc_end": 2, "calls": 1}
    assert CallReport.from_json(Record(call, "it")) == CallReport(42, "", 1.5, 0.25, 1, 2)
    refusal = SwsuspRefusal.from_json(Record({"errno": "ENOMEM", "log": ["PM: hibernation: 5 pages short"]}, "it"))
    assert refusal.errno == "ENOMEM" and len(refusal.log) == 1
