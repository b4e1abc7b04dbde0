"""Demonstrations and faults with a simulated guest: what they make of what it says."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from simulated_guest import Answer, SimulatedMachine

from kjump.errors import FormatError, LabError
from kjump.formats.superblock import Details, State, Superblock
from kjump.lab import hibernation, rollback, snapshot, switching
from kjump.lab.campaign import campaign, power_faults, provocations
from kjump.lab.campaign.campaign import Campaign, CampaignSize, fault
from kjump.lab.guest.ticker import Pause
from kjump.lab.hibernation import HibernationOptions
from kjump.lab.machine import kernel_source
from kjump.lab.machine.disks import make_disk, read_superblock, write_superblock
from kjump.lab.machine.installation import Hardware, Installation
from kjump.lab.machine.kernel import LabKernel
from kjump.lab.reports import SavedBytes, SnapshotReport
from kjump.lab.switching import SwitchingOptions

GOOD = {"counting": True, "file": True}
HARDWARE = Hardware(memory=64 << 20)
SAVED = {"kept_bytes": 200, "image_bytes": 100}
Machines = list[SimulatedMachine]


def account(checks: dict[str, bool]) -> str:
    return json.dumps({"checks": checks, "counters": {"counter": 1}, "pages": []})


def hibernated(**change: object) -> str:
    phases = {"prepare": 0.5, "away": 9.0, "again": 0.0}
    report = {"resumed": True, "window_bytes": 1 << 27, "phases": phases, "report": {"saved": SAVED}}
    return json.dumps(report | change)


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machines:
    """What a test puts into this list is started one after the other; kernels and disks are not made."""
    prepared: Machines = []
    image = tmp_path / "bzImage"
    image.write_bytes(b"kernel")
    kernel = LabKernel("6.12", "6.12.1", "x86_64", image, image, None)
    monkeypatch.setattr(kernel_source, "build", lambda *_, **__: kernel)

    def prepare(system: Installation) -> Installation:
        make_disk(system.root_disk, 4096)
        make_disk(system.target_disk, 8192)
        system.initramfs.write_bytes(b"initramfs")
        return system

    monkeypatch.setattr(Installation, "prepare", prepare)
    monkeypatch.setattr(Installation, "machine", lambda *_, **__: prepared.pop(0))
    monkeypatch.setattr(Installation, "check_root_disk", lambda _: (True, ""))
    return prepared


def saves(machine: SimulatedMachine, command: Sequence[str]) -> Answer:
    """A system that is saved: the hibernation does not come back in this machine."""
    if "kjump.lab.guest.workload" in command:
        return (0, account(GOOD) if command[-1] == "verify" else "", "")
    assert tuple(command[:2]) == ("kjump", "hibernate")
    machine.send({"event": "role", "name": "second", "uptime": 1.5})
    machine.send("save-begins")
    machine.send({"event": "saved", **SAVED})
    return None


def verifies(checks: dict[str, bool]) -> Callable[[SimulatedMachine, Sequence[str]], Answer]:
    def answer(machine: SimulatedMachine, command: Sequence[str]) -> Answer:
        assert command[-1] == "verify"
        return 0, account(checks), ""

    return answer


class Resuming(SimulatedMachine):
    """A machine that resumes: the command that the one before left unfinished ends in it."""

    def __init__(self, before: SimulatedMachine, checks: dict[str, bool], said: str, status: int = 0) -> None:
        super().__init__(verifies(checks), ["resuming", "restore-begins", "going-back"])
        self._before, self._said, self._status = before, said, status

    def __enter__(self) -> Resuming:
        super().__enter__()
        self.end(self._before.unfinished[-1], self._status, self._said, "it failed" if self._status else "")
        return self


def play(machines: Machines, folder: Path, checks: dict[str, bool], said: str, status: int = 0) -> object:
    first = SimulatedMachine(saves)
    machines += [first, Resuming(first, checks, said, status)]
    return hibernation.run(folder, version="6.12", hardware=HARDWARE, how=HibernationOptions())


def test_a_hibernation_is_put_together(machines: Machines, tmp_path: Path) -> None:
    demo = play(machines, tmp_path, GOOD, hibernated())
    assert isinstance(demo, hibernation.HibernationDemo)
    assert demo.ok and not machines
    assert (demo.window_bytes, demo.image_bytes, demo.saved_bytes) == (1 << 27, 100, 200)
    assert list(demo.checks) == ["workload_before", "exit_status", *GOOD, "powered_off", "disk"]
    assert tuple(demo.phases) == hibernation.PHASES and demo.phases["prepare"] == 0.5


def test_a_workload_that_was_disturbed_fails_a_check(machines: Machines, tmp_path: Path) -> None:
    demo = play(machines, tmp_path, GOOD | {"file": False}, hibernated())
    assert isinstance(demo, hibernation.HibernationDemo)
    assert not demo.ok and demo.failed == ["file"]


def test_what_the_command_says_is_checked(machines: Machines, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="kjump hibernate came back with exit 1: it failed"):
        play(machines, tmp_path, GOOD, "", status=1)
    with pytest.raises(FormatError, match="kjump hibernate: this is not JSON"):
        play(machines, tmp_path, GOOD, "saved")
    with pytest.raises(FormatError, match="kjump hibernate: window_bytes is"):
        play(machines, tmp_path, GOOD, hibernated(window_bytes="many"))
    with pytest.raises(LabError, match="does not say what was saved"):
        play(machines, tmp_path, GOOD, hibernated(report={}))


def test_a_command_that_ends_too_soon_says_why(machines: Machines, tmp_path: Path) -> None:
    def refuses(machine: SimulatedMachine, command: Sequence[str]) -> Answer:
        return saves(machine, command) if "python3" in command else (1, "", "kjump: it is mounted\n")

    machines.append(SimulatedMachine(refuses))
    with pytest.raises(LabError, match="ended before the second kernel: exit 1: kjump: it is mounted"):
        hibernation.run(tmp_path, version="6.12", hardware=HARDWARE)


def peers(machine: SimulatedMachine, command: Sequence[str]) -> Answer:
    """A system whose peer B does as it is told."""
    words = list(command)
    said = ""
    if words[:2] == ["kjump", "boot-peer"]:
        said = json.dumps({"peer": "B", "report": {"release": "6.12.1", "boot_seconds": 2.5}})
    elif "memory_digest" in " ".join(words):
        digests = {"entering": "aa", "leaving": "aa", "bytes": 60 << 20, "control": "cc"}
        said = json.dumps({"message": json.dumps(digests)})
    elif words[-1] == "verify":
        said = account(GOOD) if words[0] != "kjump" else json.dumps({"message": account(GOOD | {"file": False})})
    elif "kjump.lab.guest.switch_rounds" in words:
        count = int(words[4])
        rounds = {"microseconds": [900_000, *[400_000] * (count - 1)], "free": [], "wrong": 0, "switches": {"B": count}}
        said = json.dumps(rounds)
    elif "free_memory" in words[-1]:
        said = "200000000"
    return 0, said, ""


def test_switches_are_put_together(machines: Machines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(switching, "overlay", lambda _: b"cpio")
    machines.append(SimulatedMachine(peers))
    how = SwitchingOptions(rounds=4, rounds_of_three=0)
    demo = switching.run(tmp_path, version="6.12", hardware=HARDWARE, how=how)
    wrong = [f"B_file_{when}" for when in ("before", "after", "at_the_end")]
    assert demo.failed == [*wrong, "memory_given_back"]
    assert demo.times["one_peer"] == {"first": 0.9, "min": 0.4, "median": 0.4, "p95": 0.4, "later": 3}
    assert (demo.boot_seconds, demo.digested_bytes) == (2.5, 60 << 20)


@pytest.fixture
def shared(tmp_path: Path) -> Campaign:
    return Campaign(tmp_path, version="6.12", seed=3, size=CampaignSize(2, 2, 8, 1), jobs=1, tell=lambda _: None)


def refuses_to_resume(console: str = "") -> SimulatedMachine:
    reason = "the image was resumed already"
    events: list[str | dict[str, object]] = [{"event": "not-resumed", "reason": reason}, "ready"]
    said = console or f"[    1.000000] kernel\nkjump: not resumed: {reason}\n"

    def answer(machine: SimulatedMachine, command: Sequence[str]) -> Answer:
        return (1, "", "") if command[0] in ("cat", "test") else (0, "", "")

    return SimulatedMachine(answer, events, console=said)


def test_a_refusal_at_boot_must_be_on_the_console(machines: Machines, tmp_path: Path) -> None:
    system = Installation(tmp_path, kernel_source.build("6.12"), HARDWARE, 8192).prepare()
    machines.append(refuses_to_resume())
    assert provocations.refusal_at_boot(system) == "the image was resumed already"
    machines.append(refuses_to_resume(console="login:"))
    with pytest.raises(LabError, match="is not on the console: login:"):
        provocations.refusal_at_boot(system)
    machines.append(SimulatedMachine(saves, ["resuming"]))
    with pytest.raises(LabError, match="took the image for good"):
        provocations.refusal_at_boot(system)


def test_losses_of_power_from_checkpoints(machines: Machines, shared: Campaign, tmp_path: Path) -> None:
    """The hibernation is prepared once; each loss continues from a copy, of which the console log stays."""
    first = SimulatedMachine(saves)
    machines += [first, *(Resuming(first, GOOD, hibernated()) for _ in range(2))]
    provoke = next(each for each in power_faults.FAULTS if each.name == "killed-while-saving")

    def with_boots(campaign_: Campaign) -> str:
        prepared = campaign_.prepared
        disk = prepared.saving.folder / prepared.system.target_disk.name
        write_superblock(disk, Superblock(state=State.WRITING))
        for _ in range(2):
            machines.append(SimulatedMachine(saves, []))
            machines.append(refuses_to_resume())
        return provoke.provoke(campaign_)

    each = fault(provoke.name, provoke.expected, provoke.phrase)(with_boots)
    (finding,) = campaign.run(shared, [each])
    assert finding.ok, finding.seen
    assert finding.seen == "2 losses (seed 3), image then: 2 writing; 2 ordinary boot; 0 bad"
    assert [run.ok for run in finding.runs] == [True, True]
    line = json.loads(json.dumps(finding.to_json()))
    assert line["seed"] == 3 and line["runs"][0]["point"] == "saving"
    assert not list((tmp_path / provoke.name).rglob("*.img"))
    assert read_superblock(shared.prepared.saving.folder / "target.img").state is State.WRITING


def test_moments_of_a_restore_are_spread_over_three_checkpoints(shared: Campaign, machines: Machines) -> None:
    first = SimulatedMachine(saves)
    machines += [first, *(Resuming(first, GOOD, hibernated()) for _ in range(2))]
    prepared = shared.prepared
    names = [point.name for point in (prepared.saving, prepared.resuming, prepared.restoring, prepared.restoring_in_c)]
    assert names == ["saving", "resuming", "restoring", "restoring_in_c"]
    assert all(point.state.read_bytes() == b"state" for point in (prepared.saving, prepared.restoring_in_c))
    assert prepared.command == first.unfinished[-1]
    moments = list(power_faults.moments_after(prepared.restoring, 2.0, 4, random.Random(1)))
    assert all(point == prepared.restoring for point, _ in moments)


class RollingBack:
    """A system that is destroyed and rolled back to its snapshot, whose command then ends once more."""

    def __init__(self) -> None:
        self.works = True
        self.count = 0
        self.ahead = 0

    def said(self) -> str:
        report = {"taken": True, "rolled_back": self.count > 0, "count": self.count, "kind": "snapshot"}
        rest = {"target": "/dev/vdb", "phases": {"pause": 1.25}, "stamps": {}, "report": {}}
        return f"{json.dumps(report | rest)}\nrandom{self.count}\n{time.time() + self.ahead}\n"

    def __call__(self, machine: SimulatedMachine, command: Sequence[str]) -> Answer:
        line = " ".join(command)
        if "kjump.lab.guest.workload verify" in line:
            return (0, account(GOOD), "") if self.works else (1, "", "no answer")
        if command[0] == "sh" and "kjump snapshot" in line:
            threading.Timer(0.05, lambda: machine.end(machine.unfinished[0], 0, self.said())).start()
            return None
        if command[0] == "sh" and "kill" in line:
            self.works = False
        if "clock_settime" in line:
            self.ahead += int(line.rpartition("+ ")[2].rstrip(")"))
        if line == "kjump rollback --from /dev/vdb":
            self.works, self.count = True, self.count + 1
            machine.end(machine.unfinished[0], 0, self.said())
            return None
        if line.startswith("kjump rollback"):
            return 1, "", "kjump: the ext4 file system on /dev/vdc (mounted at /var) has changed\n"
        return (1 if command[0] == "ls" else 0), "", ""


def test_roll_backs_are_put_together(machines: Machines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rollback, "make_file_system", lambda *_: None)
    monkeypatch.setattr(
        rollback, "read_superblock", lambda _: Superblock(state=State.SNAPSHOT, details=Details(rolled_back=2))
    )
    machines.append(SimulatedMachine(RollingBack()))
    demo = rollback.run(tmp_path, version="6.12", hardware=HARDWARE)
    assert demo.ok, demo.failed
    assert (demo.pause, len(demo.seconds), len(demo.clock_errors)) == (1.25, 2, 2)
    assert demo.refusal.endswith("/dev/vdc (mounted at /var) has changed")
    for name in ("taken", "destroyed_2", "rolled_back_2", "file_2", "no_rubbish_1", "refused", "counted"):
        assert name in demo.checks


def test_a_snapshot_lies_in_the_one_pause_that_its_jump_lies_in() -> None:
    report = SnapshotReport(
        True, False, 0, "snapshot", "/dev/vdc", {"pause": 1.0}, 1.0, entered=500, saved=SavedBytes(kept=200, image=100)
    )
    pauses = [Pause((7,), 100, 200), Pause((8, 9), 400, 900), Pause((9,), 1000, 1100)]
    taken = snapshot._account(report, pauses, rate=250.0)
    assert (taken.values, taken.process_pause, taken.kept_bytes, taken.exact) == ((8, 9), 2.0, 200, False)
    assert replace(taken, seen={"kjump": 9, "drgn": 9}).exact
    assert not replace(taken, seen={"kjump": 9, "drgn": 8}).exact
    assert not replace(taken, seen={"kjump": 7}).exact
    with pytest.raises(LabError, match="saw 0 pauses"):
        snapshot._account(report, pauses[:1], rate=250.0)
    with pytest.raises(LabError, match="does not say what was saved"):
        snapshot._account(replace(report, saved=None), pauses, rate=250.0)
