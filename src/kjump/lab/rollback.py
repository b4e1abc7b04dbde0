"""Roll-back for real: a machine is destroyed from within, and is there again, disks and all.

The machine's root file system is mounted read-only, and what it writes goes to a small ext4 disk at /var, of which the
snapshot's hook keeps a copy on another disk. Second story: without a hook, and then something is written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kjump.errors import LabError
from kjump.formats.superblock import SUPERBLOCK_SIZE, State, Superblock
from kjump.lab import hibernation
from kjump.lab.checks import Checked
from kjump.lab.machine import kernel as kernels
from kjump.lab.machine import rootfs
from kjump.lab.machine.qemu import Guest, Machine, Reply
from kjump.lab.machine.scene import TARGET_DEVICE, Hardware, Scene, make_disk

DATA_DEVICE, COPY_DEVICE, PLAIN_TARGET = "/dev/vdc", "/dev/vdd", "/dev/vde"
_DATA_SIZE = 32 << 20
_CLOCK_ERROR = 0.5
"""Seconds: most of it is the time a reply takes to reach us."""
_SHIFT = 1000
"""Seconds by which a clock is set forward; the RTC, by which the kernel goes, knows nothing of it."""

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


@dataclass
class Demo(Checked):
    """What the demonstration came to.

    `refusal` is the sentence of the roll-back that was refused; `pause` the snapshot's. For each roll-back there are
    the `seconds` until the snapshot's command came back, and by how many the wall clock was then off (`clock_errors`).
    """

    kernel: str
    memory_bytes: int
    refusal: str = ""
    pause: float = 0.0
    seconds: list[float] = field(default_factory=list)
    clock_errors: list[float] = field(default_factory=list)
    checks: dict[str, bool] = field(default_factory=dict)


def prepare(folder: Path, version: str, hardware: Hardware) -> Scene:
    """Return a scene with a data disk (ext4), a disk for its copy, and a second target."""
    kernel = kernels.build(version)
    size = hardware.memory + (64 << 20)
    data, copy, plain = more_disks(folder)
    rootfs.make_file_system(data, None, _DATA_SIZE)
    make_disk(copy, _DATA_SIZE)
    make_disk(plain, size)
    return Scene(folder, kernel, hardware, target_size=size).prepare()


def more_disks(folder: Path) -> tuple[Path, ...]:
    """Return the disks that this scene has besides: data, its copy, the second target."""
    return folder / "data.img", folder / "copy.img", folder / "plain.img"


def run(folder: Path, *, version: str, hardware: Hardware, tell: Callable[[str], None] = lambda _: None) -> Demo:
    """Play both stories in `folder`; LabError when a step cannot be done."""
    tell("making the disks")
    scene = prepare(folder, version, hardware)
    demo = Demo(scene.kernel.release, hardware.memory)
    tell("starting Linux A")
    with scene.machine(more_disks=more_disks(folder)) as machine:
        guest = machine.guest
        guest.event("ready", timeout=120)
        guest.run("sh", "-ec", _SET_UP)
        tell("starting its work")
        demo.checks["workload_before"] = all(hibernation.start_workload(guest, 0)["checks"].values())
        with_a_hook(machine, demo, tell)
        without_a_hook(guest, demo, tell)
        guest.start("python3", "-c", "from kjump.lab.guest.agent import power_off; power_off()")
        machine.wait_off()
    with scene.target_disk.open("rb") as disk:
        superblock = Superblock.unpack(disk.read(SUPERBLOCK_SIZE))
    demo.checks["still_a_snapshot"] = superblock.state is State.SNAPSHOT
    demo.checks["counted"] = superblock.details["rolled_back"] == 2
    return demo


def with_a_hook(machine: Machine, demo: Demo, tell: Callable[[str], None]) -> None:
    """Take a snapshot, destroy what there is, roll back, look; twice."""
    guest = machine.guest
    command = guest.start(
        "sh",
        "-c",
        f"kjump snapshot --to {TARGET_DEVICE} --hook /run/hook --hook-tool /usr/bin/busybox --json; "
        "head -c 16 /dev/urandom | base64; python3 -c 'import time; print(time.time())'",
    )
    taken, random, ahead = _parts(guest.reply(command, timeout=300))
    demo.checks["taken"] = taken["taken"] and not taken["rolled_back"]
    demo.pause = taken["phases"]["pause"]
    tell(f"snapshot taken; paused for {demo.pause:.2f} s")
    randoms = {random}
    for number, shift in ((1, 0), (2, _SHIFT)):
        guest.run("sh", "-c", _DESTROY)
        guest.run("python3", "-c", f"import time; time.clock_settime(time.CLOCK_REALTIME, time.time() + {shift})")
        demo.checks[f"destroyed_{number}"] = not _works(guest)
        tell("everything destroyed; rolling back")
        asked = time.monotonic()
        reply = roll_back(guest, command, TARGET_DEVICE)
        demo.seconds.append(round(reply.time - asked, 3))
        tell(f"back after {demo.seconds[-1]:.1f} s")
        report, random, ahead_now = _parts(reply)
        randoms.add(random)
        demo.clock_errors.append(round(ahead_now - ahead - shift, 3))
        demo.checks[f"rolled_back_{number}"] = report["rolled_back"] and report["count"] == number
        for name, good in hibernation.verify_workload(guest)["checks"].items():
            demo.checks[f"{name}_{number}"] = good
        demo.checks[f"no_rubbish_{number}"] = guest.run("ls", "/var/rubbish", check=False).status != 0
    demo.checks["other_random_numbers"] = len(randoms) == 3
    demo.checks["wall_clock"] = all(abs(error) < _CLOCK_ERROR for error in demo.clock_errors)


def _parts(reply: Reply) -> tuple[dict[str, Any], str, float]:
    """Return what the snapshot's command said, a random number, and how far the guest's clock is ahead of ours."""
    if reply.status:
        raise LabError(f"kjump snapshot failed: {reply.stderr.strip()}")
    report, random, clock = reply.stdout.splitlines()
    then = time.time() - (time.monotonic() - reply.time)
    return json.loads(report), random, float(clock) - then


def _works(guest: Guest) -> bool:
    """Tell whether the workload still answers, and finds all in order."""
    try:
        return all(hibernation.verify_workload(guest)["checks"].values())
    except LabError:
        return False


def roll_back(guest: Guest, command: int, target: str) -> Reply:
    """Roll back to the snapshot that `command` took; return its reply when it comes once more.

    LabError when `kjump rollback` refuses.
    """
    asked = time.monotonic()
    number = guest.start("kjump", "rollback", "--from", target)

    def found() -> Reply | None:
        reply = guest.finished(command)
        return reply if reply and reply.time > asked else guest.finished(number)

    reply: Reply = guest.wait(found, "the roll-back", 300)
    if guest.finished(number):
        raise LabError(f"kjump rollback refused: {reply.stderr.strip()}")
    return reply


def without_a_hook(guest: Guest, demo: Demo, tell: Callable[[str], None]) -> None:
    """Take a snapshot of a machine that writes on, and be refused by `kjump rollback`."""
    guest.run("kjump", "snapshot", "--to", PLAIN_TARGET, timeout=300)
    tell("snapshot without a hook taken; trying to roll back")
    refused = guest.run("kjump", "rollback", "--from", PLAIN_TARGET, check=False)
    demo.refusal = refused.stderr.strip()
    demo.checks["refused"] = refused.status == 1 and f"{DATA_DEVICE} (mounted at /var)" in demo.refusal
    demo.checks["unharmed"] = _works(guest)
