"""A hibernation that is done once and can be continued from its checkpoints any number of times.

A system with the usual workload is saved, and resumed once without and once through a third kernel. At four
checkpoints the machine is stopped, and its state and disks are saved: when the second kernel is about to save
(`saving`), when the boot kernel has checked the image (`resuming`), and when the boot kernel or the third kernel is
about to restore (`restoring`, `restoring_in_c`). A run with a loss of power continues from the last checkpoint before
it, and so takes only seconds.

A loss of power is a SIGKILL of QEMU. Its disks are opened for direct I/O, so a write that the guest has seen complete
is on the host's disk; a real disk's volatile cache is not simulated.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from kjump.errors import FormatError, LabError
from kjump.formats.superblock import Superblock
from kjump.lab import hibernation
from kjump.lab.campaign import provocations
from kjump.lab.checks import Tell
from kjump.lab.machine.disks import copy_disk, read_superblock
from kjump.lab.machine.installation import TARGET_DEVICE, Installation
from kjump.lab.machine.qemu import VirtualMachine


@dataclass(frozen=True)
class Checkpoint:
    """A machine stopped during a hibernation: its state and disks are in `folder`; `length` is seconds to the end."""

    folder: Path
    length: float

    @property
    def name(self) -> str:
        """The name of the checkpoint."""
        return self.folder.name

    @property
    def state(self) -> Path:
        """The machine's state, for `Installation.machine`."""
        return self.folder / "state"


@dataclass(frozen=True)
class PreparedHibernation:
    """A hibernation and its checkpoints.

    `saved` has the disks of the machine when it was off; `command` is the number of the saved system's command.
    """

    system: Installation
    command: int
    saving: Checkpoint
    saved: Path
    resuming: Checkpoint
    restoring: Checkpoint
    restoring_in_c: Checkpoint

    def image(self) -> Superblock:
        """Return the superblock of the complete image."""
        return read_superblock(self.saved / self.system.target_disk.name)


def prepare(system: Installation, tell: Tell) -> PreparedHibernation:
    """Hibernate and resume `system`, whose disks are new, and save the checkpoints in its folder."""
    tell("preparing: a system at work is saved")
    with system.machine() as machine:
        guest = machine.guest
        guest.event("ready", timeout=provocations.PATIENCE)
        if not hibernation.start_workload(guest, 0).ok:
            raise LabError("the workload does not work")
        command = guest.start("kjump", "hibernate", "--to", TARGET_DEVICE, "--json")
        guest.event("save-begins", timeout=provocations.PATIENCE)
        begun = _keep(machine, system, "saving")
        if machine.wait_off(provocations.PATIENCE) != "guest-shutdown":
            raise LabError("the machine did not switch off")
        saving = Checkpoint(system.folder / "saving", time.monotonic() - begun)
    saved = _copy_disks(system, "saved")
    tell("preparing: it is resumed")
    resuming, restoring = _resumed(system, command, ("resuming", "restoring"))
    for disk in (system.root_disk, system.target_disk):
        copy_disk(saved / disk.name, disk)
    tell("preparing: it is resumed by way of a third kernel")
    _, in_c = _resumed(system, command, ("resuming_in_c", "restoring_in_c"), provocations.NO_DIRECT)
    return PreparedHibernation(system, command, saving, saved, resuming, restoring, in_c)


def _resumed(
    system: Installation, command: int, names: tuple[str, str], options: str = ""
) -> tuple[Checkpoint, Checkpoint]:
    """Let the machine resume to the end; return the checkpoints before the resume and before the restoration."""
    with system.machine(options) as machine:
        guest = machine.guest
        guest.event("resuming", timeout=provocations.PATIENCE)
        begun = _keep(machine, system, names[0])
        guest.event("restore-begins", timeout=provocations.PATIENCE)
        resuming = Checkpoint(system.folder / names[0], time.monotonic() - begun)
        begun = _keep(machine, system, names[1])
        if guest.reply(command, provocations.PATIENCE).status:
            raise LabError("the undisturbed hibernation does not end well")
        restoring = Checkpoint(system.folder / names[1], time.monotonic() - begun)
        machine.power_off()
    return resuming, restoring


def _keep(machine: VirtualMachine, system: Installation, name: str) -> float:
    """Stop the machine, save its state and disks in the folder `name`, continue it; return the time of the stop."""
    (system.folder / name).mkdir(exist_ok=True)
    machine.save_state(system.folder / name / "state")
    _copy_disks(system, name)
    machine.go_on()
    return time.monotonic()


def _copy_disks(system: Installation, name: str) -> Path:
    folder = system.folder / name
    folder.mkdir(exist_ok=True)
    for disk in (system.root_disk, system.target_disk):
        copy_disk(disk, folder / disk.name)
    return folder


@dataclass(frozen=True)
class PowerLoss:
    """A loss of power `moment` seconds after the checkpoint `point`, and the result of the next boot."""

    point: str
    moment: float
    state: str
    outcome: str
    ok: bool


def lose_power(prepared: PreparedHibernation, point: Checkpoint, moment: float, folder: Path) -> PowerLoss:
    """Continue from `point`, cut the power after `moment` seconds, boot, and check the system.

    The disks are in `folder`, of which only the console log is kept.
    """
    system = prepared.system.fork(folder, point.folder)
    try:
        with system.machine(state=point.state) as machine:
            machine.go_on()
            time.sleep(moment)
            machine.kill()
        try:
            state = read_superblock(system.target_disk).state.name.lower()
        except FormatError as error:
            state = str(error)
        outcome, ok = boot_and_look(system, prepared.command)
    finally:
        system.remove_disks()
    return PowerLoss(point.name, round(moment, 2), state, outcome, ok)


def boot_and_look(system: Installation, command: int, options: str = "") -> tuple[str, bool]:
    """Boot with more kernel `options`; return the result, and whether it is one of the two allowed ones.

    These are that the saved system is back with its workload, or an ordinary boot; in both cases the root file system
    must be clean afterwards.
    """
    try:
        with system.machine(options) as machine:
            outcome, good = _boot(machine, command)
            machine.power_off()
    except LabError as error:
        return f"failed: {error}", False
    clean, said = system.check_root_disk()
    return (outcome, good) if clean else (f"{outcome}, root damaged: {said.strip().splitlines()[-1]}", False)


def _boot(machine: VirtualMachine, command: int) -> tuple[str, bool]:
    guest = machine.guest
    first = guest.event("resuming", "not-resumed", timeout=provocations.PATIENCE)
    if first.name == "not-resumed":
        guest.event("ready", timeout=provocations.PATIENCE)
        # A saved system has its workload's socket, an ordinary boot has not.
        ordinary = guest.run("test", "-e", "/run/workload.sock", check=False).status != 0
        return "ordinary boot", ordinary
    resumed = hibernation.resume(machine, command, timeout=provocations.PATIENCE)
    if resumed.reply.status or not resumed.report.resumed:
        return f"resumed, but kjump exited {resumed.reply.status}", False
    wrong = hibernation.verify_workload(guest).failed
    return (f"resumed without {', '.join(wrong)}", False) if wrong else ("resumed with all its work", True)
