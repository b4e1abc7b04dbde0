"""Demonstrates snapshots of a system with a workload: each must be consistent, and must not disturb the system.

A process counts in a page of its own (`kjump.lab.guest.ticker`). The page's value in a snapshot is read in up to three
ways: by kjump, by drgn through the process' page tables, and by crash; it must be the value that the process found when
it went on. crash gets the physical address, because crash 8.0.2 finds only the tasks on a CPU in a late 6.1 (whose
struct pid ends in an array without a length), in vmcores of any origin.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from kjump.dump.create import Format, Request, dump
from kjump.dump.opening import open_source
from kjump.errors import LabError
from kjump.formats.record import JsonObject
from kjump.formats.superblock import State
from kjump.lab import hibernation
from kjump.lab.checks import Checked, Tell, silent
from kjump.lab.guest import ticker
from kjump.lab.guest.ticker import Pause, Ticker
from kjump.lab.machine import kernel_source as kernels
from kjump.lab.machine.disks import make_disk, read_superblock
from kjump.lab.machine.guest_channel import GuestChannel
from kjump.lab.machine.installation import Hardware, Installation
from kjump.lab.machine.kernel import LabKernel
from kjump.lab.machine.qemu import VirtualMachine
from kjump.lab.reports import SnapshotReport
from kjump.memory import PAGE_SIZE

_DRGN = """
import sys
from drgn.helpers.linux.mm import access_process_vm
from drgn.helpers.linux.pid import find_task
task = find_task(prog, int(sys.argv[1]))
print(int.from_bytes(access_process_vm(task, int(sys.argv[2]), 8), "little"))
"""


@dataclass(frozen=True)
class TakenSnapshot:
    """A snapshot: its pause and phases (seconds), sizes (bytes), and the counter's value by several readers.

    `values` are the values that the process found (two when it cannot be sure), `seen` has the value that each reader
    of the image found. `process_pause` is the time in seconds during which the process did not run.
    """

    pause: float
    process_pause: float
    phases: dict[str, float]
    image_bytes: int
    kept_bytes: int
    values: tuple[int, ...]
    seen: dict[str, int] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether all readers of the image agree with the process."""
        return len(set(self.seen.values())) == 1 and next(iter(self.seen.values())) in self.values


@dataclass(frozen=True)
class SnapshotDemo(Checked):
    """The result of the demonstration; `left_out` maps the readers of images that were not tried to the reason."""

    kernel: str
    memory_bytes: int
    snapshots: list[TakenSnapshot]
    left_out: list[str]
    checks: dict[str, bool]

    def to_json(self) -> JsonObject:
        """Return it as one JSON object."""
        return super().to_json() | {"snapshots": [asdict(s) | {"exact": s.exact} for s in self.snapshots]}


def run(folder: Path, *, version: str, hardware: Hardware, count: int = 5, tell: Tell = silent) -> SnapshotDemo:
    """Take `count` snapshots in `folder`, each to a disk of its own; LabError when a step cannot be done."""
    kernel = kernels.build(version, debug_info=True)
    tell("making the disks")
    disks = tuple(folder / f"snapshot{number}.img" for number in range(count))
    for disk in disks:
        make_disk(disk, hardware.memory + (64 << 20))
    system = Installation(folder, kernel, hardware, target_size=64 << 20).prepare()
    checks: dict[str, bool] = {}
    tell("booting")
    with system.machine(more_disks=disks) as machine:
        process, taken = _take_all(machine, count, checks, tell)
    checks["disk"] = system.check_root_disk()[0]
    left_out = _readers_left_out(kernel)
    seen = []
    for number, (disk, snapshot) in enumerate(zip(disks, taken, strict=True), 1):
        tell(f"opening snapshot {number}")
        checks[f"complete_{number}"] = read_superblock(disk).state is State.SNAPSHOT
        seen.append(replace(snapshot, seen=_values_in(disk, kernel, process, left_out)))
        checks[f"exact_{number}"] = seen[-1].exact
    return SnapshotDemo(kernel.release, hardware.memory, seen, list(left_out.values()), checks)


def _take_all(
    machine: VirtualMachine, count: int, checks: dict[str, bool], tell: Tell
) -> tuple[Ticker, list[TakenSnapshot]]:
    """Take the snapshots, and check the workload; return the counting process and the snapshots."""
    guest = machine.guest
    guest.event("ready", timeout=120)
    tell("starting the workload")
    checks["workload_before"] = hibernation.start_workload(guest, 0).ok
    started = guest.run("python3", "-m", "kjump.lab.guest.ticker", "start")
    process = Ticker.from_json(started.record("the counting process"))
    reports = []
    for number in range(count):
        reports.append(take(guest, f"/dev/vd{chr(ord('c') + number)}"))
        tell(f"snapshot {number + 1} taken; paused for {reports[-1].pause:.2f} s")
    noted = guest.run("python3", "-m", "kjump.lab.guest.ticker", "pauses").record("the counting process")
    pauses = [Pause.from_json(record) for record in noted.items("pauses")]
    checks |= hibernation.verify_workload(guest).checks
    checks["powered_off"] = machine.power_off() == "guest-shutdown"
    return process, [_account(report, pauses, process.rate) for report in reports]


def take(guest: GuestChannel, device: str, *options: str) -> SnapshotReport:
    """Take a snapshot to `device` and return the command's report; LabError when it fails."""
    reply = guest.run("kjump", "snapshot", "--to", device, "--json", *options, timeout=300)
    return SnapshotReport.from_json(reply.record("kjump snapshot"))


def _account(report: SnapshotReport, pauses: list[Pause], rate: float) -> TakenSnapshot:
    """Combine the command's report with the process' pause in which the jump lies."""
    found = [pause for pause in pauses if pause.begun < report.entered < pause.ended]
    if len(found) != 1:
        raise LabError(f"the counting process saw {len(found)} pauses at the time of one snapshot")
    if report.saved is None:
        raise LabError("kjump snapshot does not say what was saved")
    return TakenSnapshot(
        pause=report.pause,
        process_pause=round((found[0].ended - found[0].begun) / rate, 3),
        phases=report.phases,
        image_bytes=report.saved.image,
        kept_bytes=report.saved.kept,
        values=found[0].values,
    )


def _readers_left_out(kernel: LabKernel) -> dict[str, str]:
    """Return the tools that cannot read snapshots of `kernel` on this host: name -> reason."""
    left_out = {}
    if not importlib.util.find_spec("drgn"):
        left_out["drgn"] = "drgn: it is not installed (pip install drgn)"
    if not shutil.which("crash"):
        left_out["crash"] = "crash: it is not installed (apt install crash)"
    elif not kernel.release.startswith("6.1."):
        left_out["crash"] = f"crash: Debian's is older than Linux {kernel.release}"
    return left_out


def _values_in(disk: Path, kernel: LabKernel, process: Ticker, left_out: Collection[str]) -> dict[str, int]:
    """Return the counter's value by reader of the image, except those in `left_out`."""
    with open_source(disk) as source:
        page = source.read(process.frame * PAGE_SIZE, 16)
    if not page.startswith(ticker.MAGIC):
        raise LabError(f"frame {process.frame:#x} in the snapshot is not the counting process' page")
    seen = {"kjump": int.from_bytes(page[ticker.VALUE_OFFSET :], "little")}
    if "drgn" not in left_out:
        seen["drgn"] = by_drgn(disk, kernel, process.pid, process.address + ticker.VALUE_OFFSET)
    if "crash" not in left_out:
        seen["crash"] = by_crash(disk, kernel, process.frame * PAGE_SIZE + ticker.VALUE_OFFSET)
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
