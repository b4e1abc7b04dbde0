"""A machine nearly full of random bytes comes back, after swsusp was tried in the same machine and refused.

The bytes come from a disk (a guest without hardware support makes random ones slowly) and are locked in memory. swsusp
can make room by swapping out, if there is swap for that and for its image; what cannot be swapped out (locked
memory, huge pages, ramfs, drivers' memory) it cannot save beyond half of RAM, for it copies what it saves.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kjump.errors import LabError
from kjump.lab import hibernation, swsusp
from kjump.lab.checks import Checked
from kjump.lab.guest.workload import digest
from kjump.lab.hibernation import Resumed, Suspended
from kjump.lab.machine import kernel as kernels
from kjump.lab.machine.qemu import Guest, Machine
from kjump.lab.machine.scene import Hardware, Scene, make_disk

MIB = 1 << 20
_SOURCE_DEVICE = "/dev/vdc"
_SWAP_DEVICE = "/dev/vdd"
_SMALL = ("--tmpfs", str(8 * MIB), "--buffer", str(4 * MIB))


@dataclass
class BigImage(Checked):
    """What came of it; sizes in bytes, `phases` in seconds.

    `share` is how much of `memory_bytes` was filled. `swsusp` says what swsusp answered: `errno`, and its `log`.
    """

    kernel: str
    memory_bytes: int
    filled_bytes: int
    share: float
    swsusp: dict[str, Any] = field(default_factory=dict)
    available_bytes: int = 0
    window_bytes: int = 0
    saved_bytes: int = 0
    image_bytes: int = 0
    phases: dict[str, float] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, bool] = field(default_factory=dict)


def run(
    folder: Path,
    *,
    version: str,
    hardware: Hardware,
    share: float,
    tell: Callable[[str], None] = lambda _: None,
) -> BigImage:
    """Fill `share` (0 to 1) of the machine's RAM, let swsusp try, hibernate, resume, and compare the contents.

    LabError when a step cannot be done.
    """
    kernel = kernels.build(version)
    filled = math.ceil(hardware.memory * share / MIB) * MIB
    result = BigImage(kernel.release, hardware.memory, filled, round(filled / hardware.memory, 3))
    tell(f"making {filled // MIB} MiB of random bytes, and the disks")
    source, swap = folder / "random.img", folder / "swap.img"
    expected = make_random(source, filled)
    make_disk(swap, hardware.memory * 2)
    target_size = hardware.memory + hardware.memory // 16 + 64 * MIB
    scene = Scene(folder, kernel, hardware, target_size, options=f"resume={_SWAP_DEVICE}").prepare()
    disks = (source, swap)
    with scene.machine(more_disks=disks) as machine:
        machine.guest.event("ready", timeout=120)
        tell("filling the memory")
        fill(machine.guest, filled, expected)
        tell("swsusp tries")
        swsusp.prepare(machine.guest, _SWAP_DEVICE)
        result.swsusp = swsusp.refusal(machine.guest)
        swsusp.finish(machine.guest, _SWAP_DEVICE)
        result.checks["swsusp_refused"] = result.swsusp["errno"] == "ENOMEM"
        result.available_bytes = _available(machine.guest)
        tell(f"swsusp: {result.swsusp['errno']}; {result.available_bytes // MIB} MiB available; hibernating")
        suspended = hibernation.suspend(machine, timeout=600)
    tell("off; starting the machine again")
    with scene.machine(more_disks=disks) as machine:
        resumed = hibernation.resume(machine, suspended.command, timeout=600)
        tell("resumed; looking at what it holds")
        _account(result, suspended, machine, resumed)
    return result


def make_random(path: Path, size: int) -> str:
    """Write `size` random bytes to `path`; return their digest as the workload makes it."""
    with path.open("w+b") as file:
        for _ in range(0, size, MIB):
            file.write(os.urandom(MIB))
        file.flush()
        with mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as content:
            return digest(content)


def fill(guest: Guest, size: int, expected: str) -> None:
    """Start the workload with `size` bytes of the source disk locked in memory; `expected` is their digest."""
    options = ["--fill", str(size), "--fill-from", _SOURCE_DEVICE, "--fill-digest", expected, "--lock"]
    guest.run("python3", "-m", "kjump.lab.guest.workload", "start", *options, *_SMALL, timeout=600)


def _available(guest: Guest) -> int:
    """Return MemAvailable of the guest in bytes."""
    lines = guest.run("cat", "/proc/meminfo").stdout.splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def _account(result: BigImage, suspended: Suspended, machine: Machine, resumed: Resumed) -> None:
    """Add what the hibernation came to, and the checks of the contents."""
    result.checks["exit_status"] = resumed.reply.status == 0
    if resumed.reply.status:
        raise LabError(f"kjump hibernate came back with exit {resumed.reply.status}: {resumed.reply.stderr.strip()}")
    answer = json.loads(resumed.reply.stdout)
    result.window_bytes = answer["window_bytes"]
    result.report = answer["report"]
    result.image_bytes = answer["report"]["saved"]["image_bytes"]
    result.saved_bytes = answer["report"]["saved"]["kept_bytes"]
    result.phases = hibernation.phases(suspended, machine, resumed)
    result.checks |= hibernation.verify_workload(machine.guest)["checks"]
