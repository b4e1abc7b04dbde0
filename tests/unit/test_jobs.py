"""What a resident second kernel does for A, tried on this one."""

import os
from pathlib import Path
from typing import Any

import pytest

from kjump.errors import HostError, UsageError
from kjump.gates import Gate
from kjump.init import peer_command, peer_link
from kjump.init.console import Console
from kjump.init.jobs import JOBS, Work
from kjump.init.peer_link import Answer
from kjump.init.status import Status
from kjump.init.system import Role
from kjump.init.watchdog import Guard
from kjump.kexec import mailbox
from kjump.kexec.channel import SIZE, Channel, Parcel


def work(message: bytes = b"", **job: Any) -> Work:
    return Work(Role({}, job, Console(), Status(None)), Gate(), 0, Guard(), message)


def test_a_command_gets_the_message_and_gives_its_output_and_status() -> None:
    done = JOBS["command"](work(b"hello", argv=["sh", "-c", "tr a-z A-Z; echo oh >&2; exit 7"]))
    assert done == {"status": 7, "message": b"HELLOoh\n"}
    assert JOBS["command"](work(argv=["sh", "-c", "kill -9 $$"])) == {"status": -9, "message": b""}


def test_a_command_that_does_not_exist_is_one_sentence() -> None:
    with pytest.raises(HostError, match="cannot run /no/such: No such file"):
        JOBS["command"](work(argv=["/no/such"]))
    with pytest.raises(UsageError, match="no command"):
        JOBS["command"](work(argv=[]))


def test_a_command_in_the_background_is_left_alone(tmp_path: Path) -> None:
    here = tmp_path / "here"
    begun = JOBS["command"](work(argv=["sh", "-c", f"sleep 0.2; touch {here}"], background=True))
    assert not here.exists()
    os.waitpid(begun["pid"], 0)
    assert here.exists()


def test_no_job_sends_the_message_back() -> None:
    assert JOBS["none"](work(b"bytes")) == {"message": b"bytes"}


class FakeResidence(peer_link.Residence):
    """The peer's end on plain memory; each jump is answered by the next of A's orders."""

    def __init__(self, orders: list[Parcel]) -> None:
        self.channel = Channel(bytearray(SIZE), bytes(16))
        self.orders = orders
        self.seen: list[tuple[int, Parcel]] = []
        self._next()

    def _next(self) -> Parcel:
        order = self.orders.pop(0)
        self.channel.post(order, head=0, wanted=0)
        return order

    def open(self) -> None:
        pass

    def away(self, answer: Answer) -> Parcel:
        sequence = self.channel.order().sequence
        self._report(answer, {"resident": True})
        self.seen.append(self.channel.answer(sequence))
        return self._next()


def test_a_program_in_the_peer_switches_home_and_refuses_jobs_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = [Parcel(1, {"do": "command"}), Parcel(2, {"do": "shell"}), Parcel(3, {"do": "none"}, b"from A")]
    fake = FakeResidence(orders)
    monkeypatch.setattr(peer_command.Residence, "here", lambda: fake)
    assert peer_command.switch_home(b"from B") == b"from A"
    (first, refusal) = fake.seen
    assert first == (mailbox.OUTCOME_DONE, Parcel(1, {"resident": True}, b"from B"))
    assert refusal[0] == mailbox.OUTCOME_FAILED
    assert "cannot do the job `shell`" in refusal[1].words["reason"]


def test_an_answer_too_long_for_the_channel_is_said_so() -> None:
    fake = FakeResidence([Parcel(1), Parcel(2)])
    fake.away(Answer(mailbox.OUTCOME_DONE, {"status": 0}, bytes(2 << 20)))
    ((outcome, parcel),) = fake.seen
    assert outcome == mailbox.OUTCOME_FAILED
    assert "too long" in parcel.words["reason"] and parcel.words["resident"]
