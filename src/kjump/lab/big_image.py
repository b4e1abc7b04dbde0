"""Hibernates and resumes a machine nearly full of random bytes, after swsusp was tried in it and refused.

The bytes come from a disk (an emulated guest generates random bytes slowly), and are locked in memory. swsusp copies
the memory that it saves, so it needs half of RAM free. It can swap out for that, if there is swap for both the pages
and the image, but not memory that cannot be swapped: locked memory, huge pages, ramfs, drivers' memory.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from kjump.errors import LabError
from kjump.formats.record import JsonObject
from kjump.lab import hibernation, swsusp
from kjump.lab.checks import Checked, Tell, silent
from kjump.lab.guest.workload import digest
from kjump.lab.machine import kernel_source as kernels
from kjump.lab.machine.disks import make_disk
from kjump.lab.machine.guest_channel import GuestChannel
from kjump.lab.machine.installation import Hardware, Installation
from kjump.lab.swsusp import SwsuspRefusal

MIB = 1 << 20
_SOURCE_DEVICE = "/dev/vdc"
_SWAP_DEVICE = "/dev/vdd"
_SMALL = ("--tmpfs", str(8 * MIB), "--buffer", str(4 * MIB))


@dataclass(frozen=True)
class BigImageDemo(Checked):
    """The result; sizes in bytes, `phases` in seconds.

    `share` is the fraction of `memory_bytes` that was filled, `swsusp` is swsusp's refusal, `report` the reports of the
    second kernel and the restoring kernel.
    """

    kernel: str
    memory_bytes: int
    filled_bytes: int
    share: float
    swsusp: SwsuspRefusal
    available_bytes: int
    window_bytes: int
    saved_bytes: int
    image_bytes: int
    phases: dict[str, float]
    report: JsonObject
    checks: dict[str, bool]


def run(folder: Path, *, version: str, hardware: Hardware, share: float, tell: Tell = silent) -> BigImageDemo:
    """Fill `share` (0 to 1) of the machine's RAM, let swsusp try, hibernate, resume, and compare the contents.

    LabError when a step cannot be done.
    """
    kernel = kernels.build(version)
    filled = math.ceil(hardware.memory * share / MIB) * MIB
    tell(f"making {filled // MIB} MiB of random bytes, and the disks")
    disks = (folder / "random.img", folder / "swap.img")
    expected = make_random(disks[0], filled)
    make_disk(disks[1], hardware.memory * 2)
    target_size = hardware.memory + hardware.memory // 16 + 64 * MIB
    system = Installation(folder, kernel, hardware, target_size, options=f"resume={_SWAP_DEVICE}").prepare()
    with system.machine(more_disks=disks) as machine:
        machine.guest.event("ready", timeout=120)
        tell("filling the memory")
        fill(machine.guest, filled, expected)
        refusal, available = _swsusp_tries(machine.guest, tell)
        suspended = hibernation.suspend(machine, timeout=600)
    tell("off; starting the machine again")
    with system.machine(more_disks=disks) as machine:
        resumed = hibernation.resume(machine, suspended.command, timeout=600)
        tell("resumed; checking its memory")
        report, seconds = resumed.report, hibernation.phases(suspended, machine, resumed)
        checks = {"swsusp_refused": refusal.errno == "ENOMEM", "exit_status": resumed.reply.status == 0}
        checks |= hibernation.verify_workload(machine.guest).checks
    if report.saved is None:
        raise LabError("kjump hibernate does not say what was saved")
    return BigImageDemo(
        kernel=kernel.release,
        memory_bytes=hardware.memory,
        filled_bytes=filled,
        share=round(filled / hardware.memory, 3),
        swsusp=refusal,
        available_bytes=available,
        window_bytes=report.window_bytes,
        saved_bytes=report.saved.kept,
        image_bytes=report.saved.image,
        phases=seconds,
        report=json.loads(resumed.reply.stdout)["report"],
        checks=checks,
    )


def _swsusp_tries(guest: GuestChannel, tell: Tell) -> tuple[SwsuspRefusal, int]:
    """Let swsusp try; return its refusal, and the bytes available (MemAvailable) afterwards."""
    tell("swsusp tries")
    swsusp.prepare(guest, _SWAP_DEVICE)
    refusal = swsusp.refusal(guest)
    swsusp.finish(guest, _SWAP_DEVICE)
    available = _available(guest)
    tell(f"swsusp: {refusal.errno}; {available // MIB} MiB available; hibernating")
    return refusal, available


def make_random(path: Path, size: int) -> str:
    """Write `size` random bytes to `path`; return their digest as the workload makes it."""
    with path.open("w+b") as file:
        for _ in range(0, size, MIB):
            file.write(os.urandom(MIB))
        file.flush()
        with mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as content:
            return digest(content)


def fill(guest: GuestChannel, size: int, expected: str) -> None:
    """Start the workload with `size` bytes of the source disk locked in memory; `expected` is their digest."""
    options = ["--fill", str(size), "--fill-from", _SOURCE_DEVICE, "--fill-digest", expected, "--lock"]
    guest.run("python3", "-m", "kjump.lab.guest.workload", "start", *options, *_SMALL, timeout=600)


def _available(guest: GuestChannel) -> int:
    """Return MemAvailable of the guest in bytes."""
    lines = guest.run("cat", "/proc/meminfo").stdout.splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
