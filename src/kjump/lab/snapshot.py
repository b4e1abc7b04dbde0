"""Snapshots of a machine at work: each must show the very moment it was taken at, and the machine must not notice.

A process counts in a page of its own (`kjump.lab.guest.ticker`). What the page holds in a snapshot is read in up to
three ways: by kjump, by drgn through the process' page tables, and by crash; it must be what the process itself found
there when it went on. crash is given the physical address: 8.0.2 finds no task but those on a CPU in a late 6.1 (its
struct pid ends in an array without a length), whoever made the vmcore.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kjump.dump.job import Format, Request, dump
from kjump.dump.sources import open_source
from kjump.errors import LabError
from kjump.formats.superblock import SUPERBLOCK_SIZE, State, Superblock
from kjump.lab import hibernation
from kjump.lab.checks import Checked
from kjump.lab.guest import ticker
from kjump.lab.machine import kernel as kernels
from kjump.lab.machine.kernel import LabKernel
from kjump.lab.machine.qemu import Guest, Machine
from kjump.lab.machine.scene import Hardware, Scene, make_disk
from kjump.memory import PAGE_SIZE

_DRGN = """
import sys
from drgn.helpers.linux.mm import access_process_vm
from drgn.helpers.linux.pid import find_task
task = find_task(prog, int(sys.argv[1]))
print(int.from_bytes(access_process_vm(task, int(sys.argv[2]), 8), "little"))
"""


@dataclass
class Taken:
    """A snapshot: its pause and phases (seconds), sizes (bytes), and what the counter's value is said to be by whom.

    `values` are what the process found (two when it cannot be sure), `seen` what each reader of the image found.
    `process_pause` is how long the process itself stood still, in seconds.
    """

    pause: float
    process_pause: float
    phases: dict[str, float]
    image_bytes: int
    kept_bytes: int
    values: list[int] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether all that read the image agree, and the process with them."""
        return len(set(self.seen.values())) == 1 and next(iter(self.seen.values())) in self.values


@dataclass
class Demo(Checked):
    """What the demonstration came to."""

    kernel: str
    memory_bytes: int
    snapshots: list[Taken] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    checks: dict[str, bool] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as one JSON object."""
        return super().as_json() | {"snapshots": [vars(s) | {"exact": s.exact} for s in self.snapshots]}


def run(
    folder: Path,
    *,
    version: str,
    hardware: Hardware,
    count: int = 5,
    tell: Callable[[str], None] = lambda _: None,
) -> Demo:
    """Take `count` snapshots in `folder`, each to a disk of its own; LabError when a step cannot be done."""
    kernel = kernels.build(version, debug_info=True)
    tell("making the disks")
    disks = tuple(folder / f"snapshot{number}.img" for number in range(count))
    for disk in disks:
        make_disk(disk, hardware.memory + (64 << 20))
    scene = Scene(folder, kernel, hardware, target_size=64 << 20).prepare()
    demo = Demo(kernel.release, hardware.memory)
    tell("starting Linux A")
    with scene.machine(more_disks=disks) as machine:
        place = _take_all(machine, demo, count, tell)
    demo.checks["disk"] = scene.check_root_disk()[0]
    for number, (disk, taken) in enumerate(zip(disks, demo.snapshots, strict=True), 1):
        tell(f"opening snapshot {number}")
        with disk.open("rb") as file:
            demo.checks[f"complete_{number}"] = Superblock.unpack(file.read(SUPERBLOCK_SIZE)).state is State.SNAPSHOT
        taken.seen = _look(disk, kernel, place, demo.left_out)
        demo.checks[f"exact_{number}"] = taken.exact
    return demo


def _take_all(machine: Machine, demo: Demo, count: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Take the snapshots, and check the machine's work; return where the counting process has its page."""
    guest = machine.guest
    guest.event("ready", timeout=120)
    tell("starting its work")
    demo.checks["workload_before"] = all(hibernation.start_workload(guest, 0)["checks"].values())
    place: dict[str, Any] = json.loads(guest.run("python3", "-m", "kjump.lab.guest.ticker", "start").stdout)
    reports = []
    for number in range(count):
        reports.append(take(guest, f"/dev/vd{chr(ord('c') + number)}"))
        tell(f"snapshot {number + 1} taken; paused for {reports[-1]['phases']['pause']:.2f} s")
    pauses = json.loads(guest.run("python3", "-m", "kjump.lab.guest.ticker", "pauses").stdout)
    demo.snapshots = [_account(report, pauses, place["rate"]) for report in reports]
    for name, good in hibernation.verify_workload(guest)["checks"].items():
        demo.checks[name] = good
    guest.start("python3", "-c", "from kjump.lab.guest.agent import power_off; power_off()")
    demo.checks["powered_off"] = machine.wait_off() == "guest-shutdown"
    return place


def take(guest: Guest, device: str, *options: str) -> dict[str, Any]:
    """Take a snapshot to `device` and return what the command says; LabError when it fails."""
    reply = guest.run("kjump", "snapshot", "--to", device, "--json", *options, timeout=300)
    result: dict[str, Any] = json.loads(reply.stdout)
    return result


def _account(report: dict[str, Any], pauses: list[dict[str, Any]], rate: float) -> Taken:
    """Join what the command says and what the process saw: the one pause that the jump lies in."""
    entered = report["stamps"]["entered"]
    found = [pause for pause in pauses if pause["begun"] < entered < pause["ended"]]
    if len(found) != 1:
        raise LabError(f"the counting process saw {len(found)} pauses at the time of one snapshot")
    saved = report["report"]["saved"]
    return Taken(
        pause=report["phases"]["pause"],
        process_pause=round((found[0]["ended"] - found[0]["begun"]) / rate, 3),
        phases=report["phases"],
        image_bytes=saved["image_bytes"],
        kept_bytes=saved["kept_bytes"],
        values=found[0]["values"],
    )


def _look(disk: Path, kernel: LabKernel, place: dict[str, Any], left_out: list[str]) -> dict[str, int]:
    """Return the counter's value as each way to look at an image finds it; say in `left_out` what is not here."""
    with open_source(disk) as source:
        page = source.read(place["frame"] * PAGE_SIZE, 16)
    if not page.startswith(ticker.MAGIC):
        raise LabError(f"frame {place['frame']:#x} in the snapshot is not the counting process' page")
    seen = {"kjump": int.from_bytes(page[ticker.VALUE_OFFSET :], "little")}
    if importlib.util.find_spec("drgn"):
        seen["drgn"] = by_drgn(disk, kernel, place["pid"], place["address"] + ticker.VALUE_OFFSET)
    elif "drgn" not in left_out:
        left_out.append("drgn: it is not installed (pip install drgn)")
    if not shutil.which("crash"):
        why = "crash: it is not installed (apt install crash)"
    elif not kernel.release.startswith("6.1."):
        why = f"crash: Debian's is older than Linux {kernel.release}"
    else:
        seen["crash"] = by_crash(disk, kernel, place["frame"] * PAGE_SIZE + ticker.VALUE_OFFSET)
        return seen
    left_out += [why] if why not in left_out else []
    return seen


def by_drgn(disk: Path, kernel: LabKernel, pid: int, address: int) -> int:
    """Return the u64 at `address` of the process `pid`, as drgn finds it in the image on `disk`."""
    script = disk.with_name("value.py")
    script.write_text(_DRGN)
    command = [sys.executable, "-m", "kjump.dump.drgn", str(kernel.vmlinux), str(disk), str(script)]
    done = subprocess.run([*command, str(pid), str(address)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"drgn cannot open the snapshot: {done.stderr.strip()[-500:]}")
    return int(done.stdout)


def by_crash(disk: Path, kernel: LabKernel, address: int) -> int:
    """Return the u64 at physical `address`, as crash finds it in the image on `disk`, decompressed."""
    core, script = disk.with_suffix(".core"), disk.with_suffix(".crash")
    try:
        with open_source(disk) as source:
            dump(source, Request((str(core),), format=Format.ELF))
        script.write_text(f"rd -p {address:x}\nquit\n")
        command = ["crash", "--kaslr", "auto", "-s", "-i", str(script), str(kernel.vmlinux), str(core)]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    finally:
        core.unlink(missing_ok=True)
    found = re.search(rf"^\s*{address:x}:\s+([0-9a-f]{{16}})", done.stdout, re.MULTILINE)
    if found is None:
        raise LabError(f"crash cannot open the snapshot: {(done.stdout + done.stderr).strip()[-500:]}")
    return int(found[1], 16)
