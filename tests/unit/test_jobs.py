"""What a resident second kernel does for A, tried on this one."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from kjump.errors import HostError, UsageError
from kjump.gates import Gate
from kjump.hibernate.jobs import Assignment, CommandJob, Job, NoJob, ShellJob
from kjump.hibernate.report import Report
from kjump.init import peer_command, peer_link
from kjump.init.console import Console
from kjump.init.jobs import Done, Work, do
from kjump.init.peer_link import Answer
from kjump.init.status import Status
from kjump.init.system import Role
from kjump.init.watchdog import Guard
from kjump.kexec import mailbox
from kjump.kexec.channel import SIZE, Channel, Parcel


def done(job: Job, message: bytes = b"") -> Done:
    return do(Work(Role({}, Assignment(job), Console(), Status(None)), Gate(), 0, Guard(), message), job)


def test_a_command_gets_the_message_and_gives_its_output_and_status() -> None:
    command = CommandJob(("sh", "-c", "tr a-z A-Z; echo oh >&2; exit 7"))
    assert done(command, b"hello") == Done(Report(status=7), b"HELLOoh\n")
    assert done(CommandJob(("sh", "-c", "kill -9 $$"))) == Done(Report(status=-9))


def test_a_command_that_does_not_exist_is_one_sentence() -> None:
    with pytest.raises(HostError, match="cannot run /no/such: No such file"):
        done(CommandJob(("/no/such",)))
    with pytest.raises(UsageError, match="no command"):
        done(CommandJob(()))


def test_a_command_in_the_background_is_left_alone(tmp_path: Path) -> None:
    here = tmp_path / "here"
    begun = done(CommandJob(("sh", "-c", f"sleep 0.2; touch {here}"), background=True))
    assert not here.exists()
    os.waitpid(begun.report.pid, 0)
    assert here.exists()


def test_no_job_sends_the_message_back() -> None:
    assert done(NoJob(), b"bytes") == Done(message=b"bytes")


def order(sequence: int, job: Job, message: bytes = b"") -> Parcel:
    return Parcel(sequence, Assignment(job).to_json(), message)


class FakeResidence(peer_link.Residence):
    """The peer's end on plain memory; each jump is answered by the next of A's orders."""

    def __init__(self, orders: list[Parcel]) -> None:
        self.channel = Channel(bytearray(SIZE), bytes(16))
        self.orders = orders
        self.seen: list[tuple[mailbox.Outcome, Parcel]] = []
        self._next()

    def _next(self) -> Parcel:
        wanted = self.orders.pop(0)
        self.channel.post(wanted, head=0, wanted=0)
        return wanted

    def open(self) -> None:
        pass

    def away(self, answer: Answer) -> Parcel:
        sequence = self.channel.order().sequence
        self._report(replace(answer, report=replace(answer.report, resident=True)))
        self.seen.append(self.channel.answer(sequence))
        return self._next()


def test_a_program_in_the_peer_switches_home_and_refuses_jobs_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = [order(1, NoJob()), order(2, ShellJob()), Parcel(3, {"do": "?"}), order(4, NoJob(), b"from A")]
    fake = FakeResidence(orders)
    monkeypatch.setattr(peer_command.Residence, "here", lambda: fake)
    assert peer_command.switch_home(b"from B") == b"from A"
    (first, refusal, damaged) = fake.seen
    assert damaged[0] == mailbox.Outcome.FAILED and "the job: do is" in str(damaged[1].content["reason"])
    assert first == (mailbox.Outcome.DONE, Parcel(1, {"resident": True}, b"from B"))
    assert refusal[0] == mailbox.Outcome.FAILED
    assert "cannot do the job `shell`" in str(refusal[1].content["reason"])


def test_an_answer_too_long_for_the_channel_is_said_so() -> None:
    fake = FakeResidence([Parcel(1), Parcel(2)])
    fake.away(Answer(mailbox.Outcome.DONE, Report(status=0), bytes(2 << 20)))
    ((outcome, parcel),) = fake.seen
    assert outcome == mailbox.Outcome.FAILED
    assert "too long" in str(parcel.content["reason"]) and parcel.content["resident"]
