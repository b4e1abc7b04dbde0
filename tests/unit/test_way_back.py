"""PID 1 of a second kernel, on a host that only records: whatever fails, the last thing it does is jump back to A."""

import errno
import json
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kjump.errors import FormatError, HostError
from kjump.formats.e820 import RAM, RESERVED, E820Entry
from kjump.formats.record import JsonObject
from kjump.gates import DOOR_SIZE, GATE_CRASH, GATE_SIZE, GATE_WAY_BACK, Gate, door_binary
from kjump.hibernate.report import Report
from kjump.host import procfs
from kjump.init import main as init_main
from kjump.init import peer_link, system
from kjump.init.console import Console
from kjump.init.jobs import Done
from kjump.init.roles import second
from kjump.init.watchdog import Guard
from kjump.kexec import loader, mailbox, physical
from kjump.kexec.linux import second_kernel_map
from kjump.kexec.plan import ARCH_X86_64, ON_CRASH, Plan
from kjump.kexec.way_back import WayBack
from kjump.kexec.window import lay_out
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

MIB = 1 << 20
WAY = WayBack(gate=0x7FF_0000, tables=0x7FF_5000)
CRASH_KERNEL = Range.of_size(0x600_0000, MIB)
COOKIE = bytes(range(mailbox.COOKIE_SIZE))
SAID: JsonObject = {"lineage": {"id": "boot", "base": ""}, "written": []}
BOX_AT = 0x1_2345_6000
JOB = {"do": "none", "gate": WAY.gate, "watchdog": 30, "time_limit": 300, "seed": ""}


class LeftError(BaseException):
    """The fake host has jumped, or has been restarted: the real one does not return."""


@dataclass
class FakeHost:
    """What PID 1 of a second kernel sees; `steps` has what it asked the kernel for, up to the jump."""

    steps: list[str] = field(default_factory=list)
    slot: Plan | None = None
    crash_slot: Plan | None = None
    line: str = f"quiet kjump.role=second {WAY.option}"
    job: str = json.dumps(JOB)
    strict: bool = False
    refuses_to_jump: bool = False
    left: bool = False
    report: tuple[mailbox.Outcome, JsonObject] = (mailbox.Outcome.NONE, {})
    box: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, PAGE_SIZE))

    def load(self, plan: Plan) -> None:
        if plan.flags & ON_CRASH:
            self.crash_slot = plan
        else:
            self.slot = plan
        self.step("load on crash" if plan.flags & ON_CRASH else "load")

    def is_loaded(self, *, on_crash: bool = False) -> bool:
        return (self.crash_slot if on_crash else self.slot) is not None

    def jump(self) -> None:
        self.step("jump")
        if self.refuses_to_jump:
            raise HostError("the kernel refuses the jump")
        self.leave()

    def end(self, _: int = 0) -> None:
        self.step("end")
        self.leave()

    def restart(self) -> None:
        self.step("restart")
        self.leave()

    def halt(self) -> None:
        self.step("halt")
        self.leave()

    def step(self, name: str) -> None:
        if not self.left:
            self.steps.append(name)

    def leave(self) -> None:
        """Note what A finds: what PID 1 does after this did not happen on a real host."""
        if not self.left:
            self.left = True
            found = mailbox.decode(self.box[:])
            self.report = found.outcome, found.report
        raise LeftError

    def map_physical(self, address: int, length: int, *, writable: bool) -> mmap.mmap:
        if self.strict:
            raise HostError(f"physical memory at {address:#x} cannot be reached")
        if address == BOX_AT:
            return self.box
        assert (address, length, writable) == (WAY.gate, GATE_SIZE, False)
        view = mmap.mmap(-1, GATE_SIZE)
        view[:] = Gate(mailbox=BOX_AT, cookie=COOKIE, cr3_5level=WAY.tables).pack()
        return view


@pytest.fixture
def b(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHost:
    """Put a fake host under PID 1."""
    fake = FakeHost()
    fake.box[:] = mailbox.encode(COOKIE, mailbox.Outcome.NONE, 0, SAID)
    monkeypatch.setattr(loader, "_current", fake)
    monkeypatch.setattr(os, "_exit", fake.end)
    monkeypatch.setattr(system, "mount", lambda *_: fake.steps.append("mount"))
    monkeypatch.setattr(system, "uptime", lambda: 1.0)
    monkeypatch.setattr(second, "uptime", lambda: 1.0)
    monkeypatch.setattr(procfs, "crash_kernel", lambda: CRASH_KERNEL)
    monkeypatch.setattr(procfs, "vmcoreinfo_place", lambda: (1, 2))
    monkeypatch.setattr(second, "do", lambda work, job: Done(Report(status=7)))
    for module in (physical, mailbox):
        monkeypatch.setattr(module, "map_physical", fake.map_physical)
    monkeypatch.setattr(Guard, "start_watchdog", lambda *_: True)
    monkeypatch.setattr(init_main, "JOB_PATH", str(tmp_path / "job.json"))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    read_text = Path.read_text

    def text_of(path: Path, *arguments: str, **options: str) -> str:
        return fake.line if str(path) == "/proc/cmdline" else read_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", text_of)
    return fake


def boot(b: FakeHost) -> None:
    """Boot the second kernel, until it has left."""
    Path(init_main.JOB_PATH).write_text(b.job)
    b.left, b.steps = False, []
    with pytest.raises(LeftError):
        init_main.main()


def assert_back(b: FakeHost, *, report: bool = True) -> str:
    """A is back, by way of the gate; return the reason that it finds (empty without a report)."""
    assert b.steps[-1] == "jump" and b.steps.count("jump") == 1
    assert b.slot == WAY.plan()
    outcome, said = b.report
    if not report:
        assert (outcome, said) == (mailbox.Outcome.NONE, SAID)
        return ""
    assert outcome == mailbox.Outcome.FAILED
    return str(said["reason"])


def test_the_way_back_needs_nothing_but_the_command_line_and_comes_before_all_else(b: FakeHost) -> None:
    boot(b)
    assert b.steps[:2] == ["load", "load on crash"]
    assert b.steps[-1] == "jump" and b.slot == WAY.plan()
    assert b.report == (mailbox.Outcome.DONE, {"boot_seconds": 1.0, "status": 7})


def test_a_report_that_cannot_be_written_is_told_instead(b: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second, "do", lambda work, job: Done(Report(output=b"bytes")))  # type: ignore[arg-type]
    boot(b)
    assert "unexpected TypeError in the second kernel" in assert_back(b)


def test_memory_that_cannot_be_mapped(b: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    b.strict = True
    boot(b)
    assert_back(b, report=False)
    assert f"physical memory at {WAY.gate:#x} cannot be reached" in capsys.readouterr().out


def test_a_mailbox_that_cannot_be_mapped(
    b: FakeHost, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(address: int, *_: object, **__: object) -> mmap.mmap:
        raise HostError(f"physical memory at {address:#x} cannot be reached")

    monkeypatch.setattr(mailbox, "map_physical", refuse)
    boot(b)
    assert_back(b, report=False)
    assert f"physical memory at {BOX_AT:#x} cannot be reached" in capsys.readouterr().out


@pytest.mark.parametrize("job", ["", "{", "[]", "\x00", "nan"])
def test_a_damaged_job(b: FakeHost, job: str) -> None:
    b.job = job
    boot(b)
    assert "/job.json): " in assert_back(b)


@pytest.mark.parametrize("missing", sorted(JOB))
def test_a_job_that_lacks_something(b: FakeHost, missing: str) -> None:
    b.job = json.dumps({name: value for name, value in JOB.items() if name != missing})
    boot(b)
    assert missing in assert_back(b)


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("role", ["second", "resident"])
@pytest.mark.parametrize(
    "name",
    ["system.mount_sys_and_dev", "system.kernel_options", "Status.open", "system.uptime", "importlib.import_module"],
)
@pytest.mark.parametrize("error", [OSError(errno.ENODEV, "No such device"), ValueError("odd"), MemoryError()])
def test_whatever_raises_while_the_role_is_set_up(
    b: FakeHost, monkeypatch: pytest.MonkeyPatch, role: str, name: str, error: Exception
) -> None:
    b.line = f"kjump.role={role} {WAY.option}"
    target, attribute = name.split(".")
    monkeypatch.setattr(getattr(init_main, target), attribute, raising(error))
    boot(b)
    assert f"unexpected {type(error).__name__} in the second kernel" in assert_back(b)


@pytest.mark.parametrize("module", [second, peer_link], ids=["second", "resident"])
def test_a_gate_that_is_damaged(b: FakeHost, monkeypatch: pytest.MonkeyPatch, module: object) -> None:
    role = "second" if module is second else "resident"
    b.line = f"kjump.role={role} {WAY.option} kjump.gate={WAY.gate:#x}"
    monkeypatch.setattr(physical, "map_physical", lambda *_, **__: mmap.mmap(-1, GATE_SIZE))
    boot(b)
    assert_back(b, report=False)


def test_a_resident_that_cannot_map_its_channel(b: FakeHost) -> None:
    b.line, b.strict = f"kjump.role=resident {WAY.option} kjump.gate={WAY.gate:#x}", True
    boot(b)
    assert_back(b, report=False)


def test_a_role_that_does_not_exist(b: FakeHost) -> None:
    b.line = f"kjump.role=third {WAY.option}"
    boot(b)
    assert "there is no role called third" in assert_back(b)


def test_a_command_line_with_a_stray_quote(b: FakeHost) -> None:
    b.line = f"kjump.role=second {WAY.option} it's"
    boot(b)
    assert b.slot == WAY.plan() and "jump" in b.steps and "restart" not in b.steps


def test_a_console_that_fails(b: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Console, "line", raising(OSError(errno.EIO, "Input/output error")))
    boot(b)
    assert b.slot == WAY.plan() and "jump" in b.steps
    b.job = ""
    boot(b)
    assert "this is not JSON" in assert_back(b)


def test_a_crash_slot_that_is_refused(b: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "crash_kernel", raising(HostError("no /proc/iomem")))
    boot(b)
    assert assert_back(b) == "no /proc/iomem"


def test_a_kernel_that_does_not_leave_panics_into_the_crash_slot_or_restarts(
    b: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    b.refuses_to_jump = True
    boot(b)
    assert b.steps[-1] == "end" and "restart" not in b.steps
    assert b.crash_slot == WAY.crash_plan(CRASH_KERNEL)

    b.crash_slot = None
    monkeypatch.setattr(procfs, "crash_kernel", lambda: None)
    boot(b)
    assert b.steps[-1] == "restart"


def test_a_boot_that_cannot_be_is_a_message_and_a_halt(
    b: FakeHost, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    b.line = "kjump.role=boot"
    monkeypatch.setattr(system, "mount_sys_and_dev", raising(OSError(errno.ENODEV, "No such device", "/sys")))
    boot(b)
    assert b.steps == ["halt"]
    assert "No such device: '/sys'" in capsys.readouterr().out


def test_the_plans_are_the_door_with_the_gates_tables() -> None:
    back, crash = WAY.plan(), WAY.crash_plan(CRASH_KERNEL)
    assert back.entry == WAY.gate + GATE_SIZE and back.flags == ARCH_X86_64
    assert crash.entry == CRASH_KERNEL.start and crash.flags == ARCH_X86_64 | ON_CRASH
    for plan, entry in ((back, GATE_WAY_BACK), (crash, GATE_CRASH)):
        (segment,) = plan.segments
        assert segment.range == Range.of_size(plan.entry, DOOR_SIZE)
        words = [int.from_bytes(segment.data[at : at + 8], "little") for at in (0x40, 0x48, 0x50, 0x58)]
        assert words == [WAY.tables + PAGE_SIZE, WAY.tables, WAY.gate + entry, 0]
        assert segment.data[:0x40] == door_binary()[:0x40]


def test_what_the_layout_says_is_read_back_from_the_command_line() -> None:
    layout = lay_out(Range.of_size(32 * MIB, 96 * MIB), elf_headers_size=9000, memory_end=8 << 30, huge=False)
    line = f'quiet name="two words" {layout.way_back.option} it\'s'
    assert WayBack.on_command_line(line) == layout.way_back == WayBack(layout.gate, layout.tables)
    assert layout.way_back.gate + GATE_SIZE == layout.door
    assert WayBack.on_command_line("quiet kjump.way_backs=1,2") is None


@pytest.mark.parametrize("text", ["", "1", "0x1000", "a,b", "0x1000,0x2001", "0x1000,0x2000,0x3000", "-0x1000,0x2000"])
def test_a_damaged_option_is_one_sentence(text: str) -> None:
    with pytest.raises(FormatError, match="on the kernel's command line is not two addresses"):
        WayBack.on_command_line(f"kjump.way_back={text}")


def test_refused_memory_is_one_sentence_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(physical, "_MEMORY", str(tmp_path / "mem"))
    with pytest.raises(HostError, match=r"at 0x1000 cannot be reached .* No such file .* iomem=relaxed"):
        physical.map_physical(0x1000, PAGE_SIZE, writable=True)


def test_what_is_reserved_below_one_mebibyte_does_not_reach_the_first_kernels_memory() -> None:
    firmware = [
        E820Entry(Range(0, 0x9FC00), RAM),
        E820Entry(Range(0x9FC00, 0xA0000), RESERVED),
        E820Entry(Range(0xF0000, MIB), RESERVED),
        E820Entry(Range(MIB, 512 * MIB), RAM),
    ]
    layout = lay_out(Range.of_size(64 * MIB, 96 * MIB), elf_headers_size=9000, memory_end=4 << 30, huge=False)
    entries = second_kernel_map(firmware, layout, Range(PAGE_SIZE, 0x9F000))
    reserved = RangeSet(e.range for e in entries if e.type == RESERVED)  # joined, as the kernel does
    busy = [r for r in reserved if r.start < MIB]
    assert busy and all(r.end <= MIB for r in busy)
    assert RangeSet(e.range for e in entries if e.type == RAM) == RangeSet([Range(PAGE_SIZE, 0x9F000), layout.usable])
    assert reserved & RangeSet([Range(MIB, 512 * MIB)]) == RangeSet(
        [Range(MIB + PAGE_SIZE, 64 * MIB), Range(layout.gate, 512 * MIB)]
    )
