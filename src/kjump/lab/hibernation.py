"""The main job, tried for real: a Linux at work is saved from a second kernel, switched off, and alive again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kjump.errors import LabError
from kjump.lab.checks import Checked
from kjump.lab.machine import kernel as kernels
from kjump.lab.machine import rootfs
from kjump.lab.machine.qemu import Event, Guest, Machine, Reply
from kjump.lab.machine.scene import TARGET_DEVICE, Hardware, Scene

TARGET_FILE = "/var/hibernate.img"
STANDBY_FILE = "/var/standby"
STANDING_BY = {"memory": ("kjump", "standby"), "disk": ("kjump", "standby", "--on-disk", STANDBY_FILE)}
"""By where a second kernel stands by: the command that has it do so."""
PHASES = ("prepare", "jump", "boot_b", "save", "off", "boot", "boot_c", "restore", "back", "again")


@dataclass
class Demo(Checked):
    """What a hibernation in the lab came to; sizes in bytes, `phases` in seconds."""

    kernel: str
    memory_bytes: int
    window_bytes: int = 0
    image_bytes: int = 0
    saved_bytes: int = 0
    phases: dict[str, float] = field(default_factory=dict)
    checks: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Suspended:
    """A machine that has switched off: the number of its unfinished command, and when things happened.

    `role` is the second kernel's first sign of life, None when one on standby did the work.
    """

    command: int
    asked: float
    role: Event | None
    begun: Event
    saved: Event
    off: float


def suspend(
    machine: Machine, *options: str, target: str = TARGET_DEVICE, standby: bool = False, timeout: float = 300
) -> Suspended:
    """Hibernate the running `machine` to `target` and wait until it is off; LabError when it comes back instead.

    With `standby` a second kernel stands by, so that none need boot.
    """
    guest = machine.guest
    asked = time.monotonic()
    command = guest.start("kjump", "hibernate", "--to", target, "--json", *options)

    def sign(name: str) -> Event:
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


def _sign_of_life(guest: Guest, look: Callable[[], Event | None], what: str, command: int, timeout: float) -> Event:
    """Return the event that `look` finds; LabError when the command ends before, refused or brought back by B."""
    result = guest.wait(lambda: look() or guest.finished(command), what, timeout)
    if isinstance(result, Reply):
        raise LabError(f"kjump hibernate ended before {what}: {_failure(result)}")
    assert isinstance(result, Event)
    return result


def _role(guest: Guest, name: str, since: float = 0.0) -> Event | None:
    """Return the first sign of life of the kernel in role `name`, if there was one."""
    return next((e for e in guest.events if e.name == "role" and e.details["name"] == name and e.time >= since), None)


def _failure(reply: Reply) -> str:
    return f"exit {reply.status}: {reply.stderr.strip()}"


@dataclass(frozen=True)
class Resumed:
    """A machine that is back: its command's reply, and when things happened.

    `role` is C's first sign of life, None when the boot kernel did the work.
    """

    reply: Reply
    resuming: Event
    role: Event | None
    going_back: Event


def resume(machine: Machine, command: int, timeout: float = 300) -> Resumed:
    """Wait until the freshly booted `machine` has resumed and `command` has replied; LabError when it does not."""
    guest = machine.guest
    first = guest.event("resuming", "not-resumed", timeout=timeout)
    if first.name == "not-resumed":
        raise LabError(f"the machine did not resume: {first.details['reason']}")
    going_back = guest.event("going-back", timeout=timeout)
    return Resumed(guest.reply(command, timeout), first, _role(guest, "restorer"), going_back)


def phases(suspended: Suspended, machine: Machine, resumed: Resumed) -> dict[str, float]:
    """Return the seconds of each phase in PHASES, as seen from outside."""
    report = json.loads(resumed.reply.stdout)
    prepared = suspended.asked + report["phases"]["prepare"]
    role = suspended.role
    b_started = role.time - role.details["uptime"] if role else suspended.begun.time
    c_started = resumed.role.time if resumed.role else resumed.resuming.time
    seconds = {
        "prepare": report["phases"]["prepare"],
        "jump": b_started - prepared,
        "boot_b": suspended.begun.time - b_started,
        "save": suspended.saved.time - suspended.begun.time,
        "off": suspended.off - suspended.saved.time,
        "boot": resumed.resuming.time - machine.started,
        "boot_c": c_started - resumed.resuming.time,
        "restore": resumed.going_back.time - c_started,
        "back": resumed.reply.time - resumed.going_back.time - report["phases"]["again"],
        "again": report["phases"]["again"],
    }
    return {name: round(seconds[name], 3) for name in PHASES}


def start_workload(guest: Guest, fill: int, *options: str) -> dict[str, Any]:
    """Start the workload in the guest, check that it works, and return its first account of itself."""
    guest.run("python3", "-m", "kjump.lab.guest.workload", "start", "--fill", str(fill), *options, timeout=600)
    return verify_workload(guest)


def verify_workload(guest: Guest) -> dict[str, Any]:
    """Return the workload's account: {"checks", "values", "pages"}."""
    reply = guest.run("python3", "-m", "kjump.lab.guest.workload", "verify", check=False, timeout=600)
    if not reply.stdout:
        raise LabError(f"the workload does not answer: {reply.stderr.strip()}")
    answer: dict[str, Any] = json.loads(reply.stdout)
    return answer


def run(
    folder: Path,
    *,
    version: str,
    hardware: Hardware,
    fill: int = 0,
    rounds: int = 1,
    options: str = "",
    to_file: bool = False,
    standby: str = "",
    tell: Callable[[str], None] = lambda _: None,
) -> Demo:
    """Play the whole story in `folder`, `rounds` times with one machine; LabError when a step cannot be done.

    `fill` bytes of random memory are added to the workload; `options` are kernel options for A. With `to_file` the
    image goes to a file on A's root file system; with `standby`, a key of STANDING_BY, a second kernel stands by.
    """
    kernel = kernels.build(version)
    tell("making the disks")
    target_size = hardware.memory + (64 << 20)
    root_size = rootfs.SIZE + (target_size if to_file else 0)
    scene = Scene(folder, kernel, hardware, target_size, options=options, root_size=root_size).prepare()
    demo = Demo(kernel.release, hardware.memory)
    tell("starting Linux A")
    machine = scene.machine()
    with machine:
        machine.guest.event("ready", timeout=120)
        tell("starting its work")
        demo.checks["workload_before"] = all(start_workload(machine.guest, fill)["checks"].values())
        target, boot_options = TARGET_DEVICE, ""
        if to_file:
            tell("making the target file")
            target, boot_options = TARGET_FILE, make_target_file(machine.guest, target_size)
        if standby:
            tell("booting a second kernel, to stand by")
            machine.guest.run(*STANDING_BY[standby], timeout=120)
        tell("hibernating")
        suspended = suspend(machine, target=target, standby=bool(standby))
    for round_number in range(1, rounds + 1):
        tell("off; starting the machine again")
        with scene.machine(boot_options) as machine:
            resumed = resume(machine, suspended.command)
            tell("resumed; looking at its work")
            _account(demo, suspended, machine, resumed, round_number, rounds)
            if round_number < rounds:
                suspended = suspend(machine, target=target, standby=bool(standby))
                continue
            if to_file:
                demo.checks |= _check_target_file(machine.guest)
            machine.guest.start("python3", "-c", "from kjump.lab.guest.agent import power_off; power_off()")
            demo.checks["powered_off"] = machine.wait_off() == "guest-shutdown"
    demo.checks["disk"] = scene.check_root_disk()[0]
    return demo


def make_target_file(guest: Guest, size: int) -> str:
    """Make TARGET_FILE of `size` bytes in the guest; return the kernel options that find it."""
    reply = guest.run("kjump", "target", "create", "--json", TARGET_FILE, str(size), timeout=300)
    return str(json.loads(reply.stdout)["options"])


def _check_target_file(guest: Guest) -> dict[str, bool]:
    """Look at the file after its image has been run, and take it away, as anyone may."""
    shown = json.loads(guest.run("kjump", "target", "show", "--json", TARGET_FILE).stdout)
    guest.run("rm", TARGET_FILE)
    return {"target_consumed": shown["state"] == "consumed"}


def _account(
    demo: Demo, suspended: Suspended, machine: Machine, resumed: Resumed, round_number: int, rounds: int
) -> None:
    """Add what one hibernation came to; the sizes and phases of the last one stay."""
    suffix = f"_{round_number}" if rounds > 1 else ""
    demo.checks[f"exit_status{suffix}"] = resumed.reply.status == 0
    if resumed.reply.status:
        raise LabError(f"kjump hibernate came back with {_failure(resumed.reply)}")
    report = json.loads(resumed.reply.stdout)
    demo.window_bytes = report["window_bytes"]
    demo.image_bytes = report["report"]["saved"]["image_bytes"]
    demo.saved_bytes = report["report"]["saved"]["kept_bytes"]
    demo.phases = phases(suspended, machine, resumed)
    for name, good in verify_workload(machine.guest)["checks"].items():
        demo.checks[f"{name}{suffix}"] = good
