"""The resident role, and a second kernel's place beside A: on plain memory, with a loader that records."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kjump.errors import FormatError, HostError, UsageError
from kjump.gates import GATE_CRASH, GATE_SWITCH, GATE_WAY_BACK, Gate
from kjump.hibernate.jobs import Assignment, CommandJob, LookJob
from kjump.host import root
from kjump.init import jobs, peer_command, peer_link
from kjump.init.console import Console
from kjump.init.jobs import look
from kjump.init.peer_link import Residence
from kjump.init.roles import peer
from kjump.init.status import Status
from kjump.init.system import Role
from kjump.kexec import loader, mailbox
from kjump.kexec.channel import SIZE, Channel, Parcel
from kjump.kexec.plan import ON_CRASH, Plan

GATE_AT, CHANNEL_AT, COOKIE = 0x7FF_0000, 0x20_0000, bytes(range(16))


class LeftError(BaseException):
    """B has left for good."""


class Beside:
    """A and the machine: a loader whose jumps are answered by the next of A's orders, and memory to be mapped."""

    def __init__(self) -> None:
        self.memory = bytearray(SIZE)
        self.a = Channel(self.memory, COOKIE)
        self.slot: Plan | None = None
        self.crash: Plan | None = None
        self.orders: list[Parcel] = []
        self.answers: list[tuple[int, Parcel]] = []
        self.refuses = 0
        self.sequence = 1
        self.post(Parcel(1, Assignment().to_json()))

    def post(self, order: Parcel) -> None:
        self.sequence = order.sequence
        self.a.post(order, head=0x5002, wanted=GATE_AT)

    def load(self, plan: Plan) -> None:
        if plan.flags & ON_CRASH:
            self.crash = plan
        else:
            self.slot = plan

    def is_loaded(self, *, on_crash: bool = False) -> bool:
        return (self.crash if on_crash else self.slot) is not None

    def jump(self) -> None:
        if self.refuses:
            self.refuses -= 1
            raise HostError("the jump was refused: EBUSY")
        self.answers.append(self.a.answer(self.sequence))
        assert self.slot is not None
        if not self.slot.preserves_context or not self.orders:
            raise LeftError
        self.post(self.orders.pop(0))

    def map_physical(self, address: int, length: int, *, writable: bool) -> Any:
        return self.memory if address == CHANNEL_AT else contextlib.nullcontext(Gate(
            mailbox=CHANNEL_AT, cookie=COOKIE, cr3_5level=GATE_AT + 0x5000, cr3_4level=GATE_AT + 0x6000, tsc_in=7
        ).pack())  # fmt: skip


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Beside]:
    made = Beside()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cmdline").write_text(f"quiet kjump.role=resident kjump.gate={GATE_AT:#x}\n")
    (tmp_path / "proc/uptime").write_text("1.5 1.0\n")
    (tmp_path / "proc/iomem").write_text("06000000-060fffff : Crash kernel\n")
    (tmp_path / "sys/kernel").mkdir(parents=True)
    (tmp_path / "sys/kernel/vmcoreinfo").write_text("1000 800\n")
    monkeypatch.setattr("kjump.kexec.channel.map_physical", made.map_physical)
    monkeypatch.setattr("kjump.kexec.physical.map_physical", made.map_physical)
    monkeypatch.setattr(peer_link.kernel_memory, "Kcore", contextlib.nullcontext)
    monkeypatch.setattr(peer_link.kernel_memory, "boot_cpu_gdt", lambda kcore: (0xFFFF8000, 0x7F))
    with root.below(tmp_path), loader.used(made):  # type: ignore[arg-type]
        yield made


def play(beside: Beside, *orders: Parcel) -> None:
    beside.orders = [*orders]
    with pytest.raises(LeftError):
        peer.run(Role({}, Assignment(), Console(), Status(None)))


def entry(plan: Plan | None) -> int:
    """Return which entry of the gate a door leads to."""
    assert plan is not None
    (segment,) = plan.segments
    entries = (GATE_SWITCH, GATE_WAY_BACK, GATE_CRASH)
    return next(e for e in entries if (GATE_AT + e).to_bytes(8, "little") in segment.data)


def test_a_resident_kernel_does_the_job_of_each_visit_and_stays(beside: Beside, capsys: Any) -> None:
    play(
        beside,
        Parcel(2, Assignment(CommandJob(("tr", "a-z", "A-Z"))).to_json(), b"hello"),
        Parcel(3, Assignment().to_json() | {"do": "nonsense"}),
    )
    first, second, third = beside.answers
    assert first[0] == mailbox.Outcome.DONE
    assert first[1].content["boot_seconds"] == 1.5 and first[1].content["resident"] is True
    assert (second[0], second[1].message, second[1].content["status"]) == (mailbox.Outcome.DONE, b"HELLO", 0)
    assert "boot_seconds" not in second[1].content
    assert third[0] == mailbox.Outcome.FAILED
    assert str(third[1].content["reason"]).startswith('the job: do is "nonsense", not one of')
    assert entry(beside.slot) == GATE_SWITCH and entry(beside.crash) == GATE_CRASH


def test_what_a_job_raises_is_said_and_the_kernel_stays(beside: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(work: Any) -> dict[str, Any]:
        assert (work.gate.tsc_in, work.head) == (7, 0x5002)
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(jobs, "none_job", odd)
    play(beside)
    ((outcome, parcel),) = beside.answers
    assert outcome == mailbox.Outcome.FAILED
    assert parcel.content["reason"] == "unexpected ZeroDivisionError in the second kernel: odd"


def test_a_kernel_that_cannot_stay_goes_back_for_good(beside: Beside) -> None:
    beside.refuses = 1
    with pytest.raises(LeftError):
        peer.run(Role({}, Assignment(), Console(), Status(None)))
    ((outcome, parcel),) = beside.answers
    assert outcome == mailbox.Outcome.FAILED
    assert "could not stay: the jump was refused" in str(parcel.content["reason"])
    assert "resident" not in parcel.content
    assert entry(beside.slot) == GATE_WAY_BACK


def test_a_kernel_that_cannot_load_its_door_goes_back_at_once(beside: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kcore: Any) -> tuple[int, int]:
        raise HostError("/proc/kallsyms has no gdt_page")

    monkeypatch.setattr(peer_link.kernel_memory, "boot_cpu_gdt", refuse)
    play(beside)
    assert beside.answers[0][1].content["reason"] == "/proc/kallsyms has no gdt_page"


def test_the_time_limit_of_a_job_ends_the_residency(beside: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    residence = Residence.here()
    order = Parcel(1, Assignment(time_limit=300).to_json())
    visit = peer._Visit(Role({}, Assignment(), Console(), Status(None)), residence, order)
    with pytest.raises(LeftError):
        visit._expired(300)
    ((outcome, parcel),) = beside.answers
    assert outcome == mailbox.Outcome.FAILED
    assert parcel.content["reason"] == "the job took longer than its time limit of 300 s"
    beside.orders = [Parcel(2, Assignment().to_json())]
    residence.load_door()
    assert visit.leave(visit.work()).sequence == 2
    visit._expired(300)  # the job has ended: the clock strikes too late
    assert len(beside.answers) == 2


def test_children_that_have_ended_are_taken_leave_of() -> None:
    pid = os.posix_spawnp("true", ["true"], os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    peer._reap()
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


# --- its place -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "error", "words"),
    [("", UsageError, "not started by `kjump boot-peer`"), ("kjump.gate=x", FormatError, "is not a number")],
)
def test_a_kernel_that_is_no_peer(beside: Beside, tmp_path: Path, option: str, error: type, words: str) -> None:
    (tmp_path / "proc/cmdline").write_text(f"quiet {option}\n")
    with pytest.raises(error, match=words):
        Residence.here()
    assert peer_link.is_resident() == bool(option)


def test_the_door_is_loaded_once_and_the_crash_slot_where_there_is_one(beside: Beside, tmp_path: Path) -> None:
    residence = Residence.here()
    residence.open()
    door, crash = beside.slot, beside.crash
    residence.open()
    assert beside.slot is door and beside.crash is crash and door is not None and crash is not None
    beside.crash = None
    (tmp_path / "proc/iomem").write_text("")
    assert not residence.cover_crash()


# --- the command in a small initramfs --------------------------------------------------------------------------------


@pytest.fixture
def command(beside: Beside, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run(*words: str) -> None:
        monkeypatch.setattr("sys.argv", ["kjump", *words])
        peer_command.main()

    return run


def test_a_command_switches_home_with_a_message_and_back_with_one(
    beside: Beside, command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_bytes(b"to A")
    beside.orders = [Parcel(2, Assignment().to_json(), b"from A")]
    command("switch", "--send", str(tmp_path / "out"), "--receive", str(tmp_path / "in"))
    assert beside.answers[0][1].message == b"to A"
    assert (tmp_path / "in").read_bytes() == b"from A"


def test_what_the_command_refuses_is_one_sentence(
    beside: Beside, command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, status in ((("dance",), 2), (("switch", "--send"), 2), (("switch", "--send", str(tmp_path / "no")), 1)):
        with pytest.raises(SystemExit) as ended:
            command(*words)
        assert ended.value.code == status
        error = capsys.readouterr().err
        assert error.startswith(("kjump: ", "usage: ")) and "Traceback" not in error


def test_the_command_looks_as_well(command: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(look, "main", lambda words: asked.append(list(words)))
    command("peer", "info")
    assert asked == [["peer", "info"]]


def test_a_peer_job_cuts_what_does_not_fit(beside: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "look", lambda words: "x" * 20000)
    report = jobs.look_job(LookJob(("info",))).report
    assert len(report.output) + report.cut == 20000 and report.cut > 0
    assert mailbox.fits(report.to_json())


def test_a_shell_job_needs_a_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shell = tmp_path / "sh"
    shell.write_text("#!/bin/sh\nexit 3\n")
    shell.chmod(0o755)
    work = SimpleNamespace(role=Role({}, Assignment(), Console(), Status(None)))
    monkeypatch.setattr("kjump.init.jobs._SHELLS", ([str(tmp_path / "none")], [str(shell)]))
    assert jobs.shell_job(work).report.status == 3  # type: ignore[arg-type]
    monkeypatch.setattr("kjump.init.jobs._SHELLS", ([str(tmp_path / "none")],))
    with pytest.raises(HostError, match="has no shell"):
        jobs.shell_job(work)  # type: ignore[arg-type]
