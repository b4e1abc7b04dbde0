"""Demonstrates hibernation: a system with a workload is saved by a second kernel, switched off, and resumed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kjump.errors import LabError
from kjump.lab.checks import Checked, Tell, silent
from kjump.lab.guest.activity import WorkloadAccount
from kjump.lab.machine import kernel_source as kernels
from kjump.lab.machine import rootfs
from kjump.lab.machine.guest_channel import CommandReply, GuestChannel, GuestEvent
from kjump.lab.machine.installation import TARGET_DEVICE, Hardware, Installation
from kjump.lab.machine.qemu import VirtualMachine
from kjump.lab.reports import HibernateReport

TARGET_FILE = "/var/hibernate.img"
STANDBY_FILE = "/var/standby"
STANDING_BY = {"memory": ("kjump", "standby"), "disk": ("kjump", "standby", "--on-disk", STANDBY_FILE)}
"""Where a second kernel can be on standby, each with the command that puts it there."""
PHASES = ("prepare", "jump", "boot_b", "save", "off", "boot", "boot_c", "restore", "back", "again")


@dataclass(frozen=True)
class HibernationDemo(Checked):
    """The result of hibernations in the lab; sizes in bytes and `phases` in seconds are those of the last one."""

    kernel: str
    memory_bytes: int
    window_bytes: int
    image_bytes: int
    saved_bytes: int
    phases: dict[str, float]
    checks: dict[str, bool]


@dataclass(frozen=True)
class Suspended:
    """A machine that has switched off: the number of its unfinished command, and the times of its phases.

    `role` is the second kernel's first event, None when a kernel on standby saved.
    """

    command: int
    asked: float
    role: GuestEvent | None
    begun: GuestEvent
    saved: GuestEvent
    off: float


def suspend(
    machine: VirtualMachine, *options: str, target: str = TARGET_DEVICE, standby: bool = False, timeout: float = 300
) -> Suspended:
    """Hibernate the running `machine` to `target` and wait until it is off; LabError when it comes back instead.

    With `standby` a second kernel is on standby, and none is booted.
    """
    guest = machine.guest
    asked = time.monotonic()
    command = guest.start("kjump", "hibernate", "--to", target, "--json", *options)

    def sign(name: str) -> GuestEvent:
        return _sign_of_life(guest, lambda: guest.seen(name, since=asked), f"event {name}", command, timeout)

    role = (
        None
        if standby
        else _sign_of_life(guest, lambda: _role(guest, "second", asked), "the second kernel", command, timeout)
    )
    begun, saved = sign("save-begins"), sign("saved")
    reason = machine.wait_off(timeout)
    if reason != "guest-shutdown":
        raise LabError(f"the machine did not switch off but ended with {reason}")
    return Suspended(command, asked, role, begun, saved, time.monotonic())


def _sign_of_life(
    guest: GuestChannel, look: Callable[[], GuestEvent | None], what: str, command: int, timeout: float
) -> GuestEvent:
    """Wait for the event that `look` finds; LabError when the command ends before (refused, or the save failed)."""

    def found() -> GuestEvent | None:
        event = look()
        reply = None if event else guest.finished(command)
        if reply:
            raise LabError(f"kjump hibernate ended before {what}: {failure(reply)}")
        return event

    return guest.wait(found, what, timeout)


def _role(guest: GuestChannel, name: str, since: float = 0.0) -> GuestEvent | None:
    """Return the first event of the kernel in role `name`, or None."""
    roles = (e for e in guest.events if e.name == "role" and e.time >= since)
    return next((e for e in roles if e.details.text("name") == name), None)


def failure(reply: CommandReply) -> str:
    """Return a description, for a message, of how a command failed."""
    return f"exit {reply.status}: {reply.stderr.strip()}"


@dataclass(frozen=True)
class Resumed:
    """A machine that has resumed: its command's reply, and the times of its phases.

    `role` is the first event of the restoring kernel, None when the boot kernel restored.
    """

    reply: CommandReply
    resuming: GuestEvent
    role: GuestEvent | None
    going_back: GuestEvent

    @property
    def report(self) -> HibernateReport:
        """The command's report; LabError when the command failed, FormatError when its output is no report."""
        if self.reply.status:
            raise LabError(f"kjump hibernate came back with {failure(self.reply)}")
        return HibernateReport.from_json(self.reply.record("kjump hibernate"))


def resume(machine: VirtualMachine, command: int, timeout: float = 300) -> Resumed:
    """Wait until the freshly booted `machine` has resumed and `command` has replied; LabError when it does not."""
    guest = machine.guest
    first = guest.event("resuming", "not-resumed", timeout=timeout)
    if first.name == "not-resumed":
        raise LabError(f"the machine did not resume: {first.details.text('reason')}")
    going_back = guest.event("going-back", timeout=timeout)
    return Resumed(guest.reply(command, timeout), first, _role(guest, "restorer"), going_back)


def phases(suspended: Suspended, machine: VirtualMachine, resumed: Resumed) -> dict[str, float]:
    """Return the seconds of each phase in PHASES, measured on the host."""
    report = resumed.report
    prepared = suspended.asked + report.prepare
    role = suspended.role
    b_started = role.time - role.details.number("uptime", low=0) if role else suspended.begun.time
    c_started = resumed.role.time if resumed.role else resumed.resuming.time
    seconds = {
        "prepare": report.prepare,
        "jump": b_started - prepared,
        "boot_b": suspended.begun.time - b_started,
        "save": suspended.saved.time - suspended.begun.time,
        "off": suspended.off - suspended.saved.time,
        "boot": resumed.resuming.time - machine.started,
        "boot_c": c_started - resumed.resuming.time,
        "restore": resumed.going_back.time - c_started,
        "back": resumed.reply.time - resumed.going_back.time - report.again,
        "again": report.again,
    }
    return {name: round(seconds[name], 3) for name in PHASES}


def start_workload(guest: GuestChannel, fill: int, *options: str) -> WorkloadAccount:
    """Start the workload in the guest, check that it works, and return its first account."""
    guest.run("python3", "-m", "kjump.lab.guest.workload", "start", "--fill", str(fill), *options, timeout=600)
    return verify_workload(guest)


def verify_workload(guest: GuestChannel) -> WorkloadAccount:
    """Return the workload's account; LabError when it does not answer."""
    reply = guest.run("python3", "-m", "kjump.lab.guest.workload", "verify", check=False, timeout=600)
    if not reply.stdout:
        raise LabError(f"the workload does not answer: {reply.stderr.strip()}")
    return WorkloadAccount.from_json(reply.record("the workload"))


@dataclass(frozen=True)
class HibernationOptions:
    """How to hibernate: `fill` bytes of random memory more than the usual workload, `rounds` times with one machine.

    `kernel_options` are for the system that is saved. With `to_file` the image goes to a file on its root file system;
    with `standby`, a key of STANDING_BY, a second kernel is on standby.
    """

    fill: int = 0
    rounds: int = 1
    kernel_options: str = ""
    to_file: bool = False
    standby: str = ""


def run(
    folder: Path,
    *,
    version: str,
    hardware: Hardware,
    how: HibernationOptions = HibernationOptions(),  # frozen
    tell: Tell = silent,
) -> HibernationDemo:
    """Hibernate and resume in `folder` as `how` says; LabError when a step cannot be done."""
    kernel = kernels.build(version)
    tell("making the disks")
    target_size = hardware.memory + (64 << 20)
    root_size = rootfs.SIZE + (target_size if how.to_file else 0)
    options = how.kernel_options
    system = Installation(folder, kernel, hardware, target_size, options=options, root_size=root_size).prepare()
    target = TARGET_FILE if how.to_file else TARGET_DEVICE
    checks: dict[str, bool] = {}
    with system.machine() as machine:
        boot_options = _set_up(machine, how, target_size, checks, tell)
        tell("hibernating")
        suspended = suspend(machine, target=target, standby=bool(how.standby))
    for number in range(1, how.rounds + 1):
        tell("off; starting the machine again")
        with system.machine(boot_options) as machine:
            resumed = resume(machine, suspended.command)
            tell("resumed; checking its workload")
            suffix = f"_{number}" if how.rounds > 1 else ""
            checks[f"exit_status{suffix}"] = resumed.reply.status == 0
            report, seconds = resumed.report, phases(suspended, machine, resumed)
            checks |= {f"{name}{suffix}": good for name, good in verify_workload(machine.guest).checks.items()}
            if number < how.rounds:
                suspended = suspend(machine, target=target, standby=bool(how.standby))
                continue
            if how.to_file:
                checks["target_consumed"] = _consumed_and_removed(machine.guest)
            checks["powered_off"] = machine.power_off() == "guest-shutdown"
    checks["disk"] = system.check_root_disk()[0]
    saved = report.saved
    if saved is None:
        raise LabError("kjump hibernate does not say what was saved")
    return HibernationDemo(
        kernel.release, hardware.memory, report.window_bytes, saved.image, saved.kept, seconds, checks
    )


def _set_up(
    machine: VirtualMachine, how: HibernationOptions, target_size: int, checks: dict[str, bool], tell: Tell
) -> str:
    """Prepare the machine for a hibernation; return the kernel options by which its boots find the image."""
    tell("booting")
    guest = machine.guest
    guest.event("ready", timeout=120)
    tell("starting the workload")
    checks["workload_before"] = start_workload(guest, how.fill).ok
    boot_options = ""
    if how.to_file:
        tell("making the target file")
        boot_options = make_target_file(guest, target_size)
    if how.standby:
        tell("booting a second kernel, to stand by")
        guest.run(*STANDING_BY[how.standby], timeout=120)
    return boot_options


def make_target_file(guest: GuestChannel, size: int) -> str:
    """Make TARGET_FILE of `size` bytes in the guest; return the kernel options that find it."""
    reply = guest.run("kjump", "target", "create", "--json", TARGET_FILE, str(size), timeout=300)
    return reply.record("kjump target create").text("options")


def _consumed_and_removed(guest: GuestChannel) -> bool:
    """Remove the target file, whose image has been resumed; return whether the file was marked as consumed."""
    shown = guest.run("kjump", "target", "show", "--json", TARGET_FILE).record("kjump target show")
    guest.run("rm", TARGET_FILE)
    return shown.text("state") == "consumed"
