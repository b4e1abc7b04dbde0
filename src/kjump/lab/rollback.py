"""Demonstrates roll-back: a system is destroyed from within, and then restored, disks included.

Its root file system is mounted read-only; it writes to a small ext4 disk at /var, which the snapshot's hook copies to
another disk. Then the same without a hook: the roll-back must be refused.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from kjump.errors import FormatError, LabError
from kjump.formats.record import Record
from kjump.formats.superblock import State
from kjump.lab import hibernation
from kjump.lab.checks import Checked, Tell, silent
from kjump.lab.machine import kernel_source as kernels
from kjump.lab.machine.disks import make_disk, make_file_system, read_superblock
from kjump.lab.machine.guest_channel import CommandReply, GuestChannel
from kjump.lab.machine.installation import TARGET_DEVICE, Hardware, Installation
from kjump.lab.machine.qemu import VirtualMachine
from kjump.lab.reports import SnapshotReport

DATA_DEVICE, COPY_DEVICE, PLAIN_TARGET = "/dev/vdc", "/dev/vdd", "/dev/vde"
_DATA_SIZE = 32 << 20
_CLOCK_ERROR = 0.5
"""The allowed error of the guest's clock in seconds, most of it for the time that a reply takes."""
_SHIFT = 1000
"""Seconds by which a system's clock is set forward; the RTC, which the kernel reads, is not changed."""

_HOOK = f"""#!/bin/sh
case $1 in
  save) from={DATA_DEVICE}; to={COPY_DEVICE};;
  restore) from={COPY_DEVICE}; to={DATA_DEVICE};;
esac
exec dd if=$from of=$to bs=1M conv=fsync
"""

_SET_UP = f"""
mkdir -p /mnt/ram
mount -t ext4 {DATA_DEVICE} /var
mount -o remount,ro /
cat > /run/hook << 'END'
{_HOOK}END
chmod +x /run/hook
"""

_DESTROY = """
for pid in $(pidof -x python3); do
  grep -q kjump.lab.guest.workload /proc/$pid/cmdline && kill -9 $pid
done
head -c 50000000 /dev/urandom > /mnt/ram/content
rm /var/workload.log
head -c 5000000 /dev/urandom > /var/rubbish
sync
"""


@dataclass(frozen=True)
class RollbackDemo(Checked):
    """The result of the demonstration.

    `refusal` is the message of the roll-back that was refused, `pause` the duration of the snapshot's pause. For each
    roll-back `seconds` is the time until the snapshot's command returned, and `clock_errors` the wall clock's error
    then.
    """

    kernel: str
    memory_bytes: int
    refusal: str
    pause: float
    seconds: list[float]
    clock_errors: list[float]
    checks: dict[str, bool]


@dataclass
class _RollBacks:
    """The results of the roll-backs with a hook so far."""

    pause: float = 0.0
    seconds: list[float] = field(default_factory=list)
    clock_errors: list[float] = field(default_factory=list)
    checks: dict[str, bool] = field(default_factory=dict)


def prepare(folder: Path, version: str, hardware: Hardware) -> Installation:
    """Return a system with a data disk (ext4), a disk for its copy, and a second target."""
    kernel = kernels.build(version)
    size = hardware.memory + (64 << 20)
    data, copy, plain = more_disks(folder)
    make_file_system(data, None, _DATA_SIZE)
    make_disk(copy, _DATA_SIZE)
    make_disk(plain, size)
    return Installation(folder, kernel, hardware, target_size=size).prepare()


def more_disks(folder: Path) -> tuple[Path, ...]:
    """Return the additional disks of this system: data, its copy, the second target."""
    return folder / "data.img", folder / "copy.img", folder / "plain.img"


def run(folder: Path, *, version: str, hardware: Hardware, tell: Tell = silent) -> RollbackDemo:
    """Roll back with a hook, and try to without one, in `folder`; LabError when a step cannot be done."""
    tell("making the disks")
    system = prepare(folder, version, hardware)
    tell("booting")
    with system.machine(more_disks=more_disks(folder)) as machine:
        guest = machine.guest
        guest.event("ready", timeout=120)
        guest.run("sh", "-ec", _SET_UP)
        tell("starting the workload")
        checks = {"workload_before": hibernation.start_workload(guest, 0).ok}
        done = with_a_hook(machine, tell)
        checks |= done.checks
        refusal = without_a_hook(guest, tell)
        checks["refused"] = f"{DATA_DEVICE} (mounted at /var)" in refusal
        checks["unharmed"] = _works(guest)
        machine.power_off()
    superblock = read_superblock(system.target_disk)
    checks["still_a_snapshot"] = superblock.state is State.SNAPSHOT
    checks["counted"] = superblock.details.rolled_back == 2
    return RollbackDemo(
        system.kernel.release, hardware.memory, refusal, done.pause, done.seconds, done.clock_errors, checks
    )


def with_a_hook(machine: VirtualMachine, tell: Tell) -> _RollBacks:
    """Take a snapshot, then twice destroy the system, roll back, and check it."""
    guest = machine.guest
    command = guest.start(
        "sh",
        "-c",
        f"kjump snapshot --to {TARGET_DEVICE} --hook /run/hook --hook-tool /usr/bin/busybox --json; "
        "head -c 16 /dev/urandom | base64; python3 -c 'import time; print(time.time())'",
    )
    first = _came_back(guest.reply(command, timeout=300))
    done = _RollBacks(pause=first.report.pause)
    done.checks["taken"] = first.report.taken and not first.report.rolled_back
    tell(f"snapshot taken; paused for {done.pause:.2f} s")
    randoms = {first.random}
    for number, shift in ((1, 0), (2, _SHIFT)):
        guest.run("sh", "-c", _DESTROY)
        guest.run("python3", "-c", f"import time; time.clock_settime(time.CLOCK_REALTIME, time.time() + {shift})")
        done.checks[f"destroyed_{number}"] = not _works(guest)
        tell("everything destroyed; rolling back")
        asked = time.monotonic()
        reply = roll_back(guest, command, TARGET_DEVICE)
        done.seconds.append(round(reply.time - asked, 3))
        tell(f"back after {done.seconds[-1]:.1f} s")
        again = _came_back(reply)
        randoms.add(again.random)
        done.clock_errors.append(round(again.ahead - first.ahead - shift, 3))
        done.checks[f"rolled_back_{number}"] = again.report.rolled_back and again.report.count == number
        account = hibernation.verify_workload(guest)
        done.checks |= {f"{name}_{number}": good for name, good in account.checks.items()}
        done.checks[f"no_rubbish_{number}"] = guest.run("ls", "/var/rubbish", check=False).status != 0
    done.checks["other_random_numbers"] = len(randoms) == 3
    done.checks["wall_clock"] = all(abs(error) < _CLOCK_ERROR for error in done.clock_errors)
    return done


@dataclass(frozen=True)
class _CameBack:
    """A return of the snapshot's command: report, random number, seconds by which the guest's clock is ahead."""

    report: SnapshotReport
    random: str
    ahead: float


def _came_back(reply: CommandReply) -> _CameBack:
    """Parse the output of the snapshot's command, and of the commands after it."""
    lines = reply.stdout.splitlines()
    if reply.status or len(lines) != 3:
        raise LabError(f"kjump snapshot failed: {reply.stderr.strip()}")
    report, random, clock = lines
    then = time.time() - (time.monotonic() - reply.time)
    return _CameBack(SnapshotReport.from_json(Record.parse(report, "kjump snapshot")), random, float(clock) - then)


def _works(guest: GuestChannel) -> bool:
    """Tell whether the workload answers, and all its checks hold."""
    try:
        return hibernation.verify_workload(guest).ok
    except (LabError, FormatError):
        return False


def roll_back(guest: GuestChannel, command: int, target: str) -> CommandReply:
    """Roll back to the snapshot that `command` took; return the reply of `command`, which then returns again.

    LabError when `kjump rollback` refuses.
    """
    asked = time.monotonic()
    number = guest.start("kjump", "rollback", "--from", target)

    def found() -> CommandReply | None:
        reply = guest.finished(command)
        return reply if reply and reply.time > asked else guest.finished(number)

    reply = guest.wait(found, "the roll-back", 300)
    if guest.finished(number):
        raise LabError(f"kjump rollback refused: {reply.stderr.strip()}")
    return reply


def without_a_hook(guest: GuestChannel, tell: Tell) -> str:
    """Take a snapshot of a machine that goes on writing; return the message with which `kjump rollback` refuses.

    LabError when it does not.
    """
    guest.run("kjump", "snapshot", "--to", PLAIN_TARGET, timeout=300)
    tell("snapshot without a hook taken; trying to roll back")
    refused = guest.run("kjump", "rollback", "--from", PLAIN_TARGET, check=False)
    if refused.status != 1:
        raise LabError(f"kjump rollback exited {refused.status}: {refused.stderr.strip()}")
    return refused.stderr.strip()
