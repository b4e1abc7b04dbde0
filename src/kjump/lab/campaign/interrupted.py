"""One hibernation, prepared once and then broken off wherever one likes.

The story is played to its end by a Linux A with the usual workload, its resume once without and once with C. At four
points the machine is stopped and kept, its state and its disks: when B is about to save (`saving`), when the boot
kernel has found the image good (`resuming`), and when it, or C, is about to restore (`restoring`, `restoring_in_c`). A
run that loses its power at some moment goes on from the nearest of them, so it costs seconds.

Taking the power away is a SIGKILL of QEMU. Its disks are opened for direct I/O, so what the guest was told is
written is on the host's disk; a real disk's volatile cache, which a flush empties, is not played.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kjump.errors import FormatError, LabError
from kjump.formats.superblock import Superblock
from kjump.lab import hibernation
from kjump.lab.campaign import provocations
from kjump.lab.machine.qemu import Machine
from kjump.lab.machine.scene import TARGET_DEVICE, Scene, copy_disk

_PATIENCE = 180.0
"""Seconds; nothing here takes as long, on a busy host too."""


@dataclass(frozen=True)
class Point:
    """A machine stopped in the middle of the story: its state and disks lie in `folder`; seconds to the end."""

    folder: Path
    length: float

    @property
    def state(self) -> Path:
        """The machine's state, for `Scene.machine`."""
        return self.folder / "state"


@dataclass(frozen=True)
class Story:
    """The points of the story. `saved` has the disks when the machine was off; `command` is A's, unfinished then."""

    scene: Scene
    command: int
    saving: Point
    saved: Path
    resuming: Point
    restoring: Point
    restoring_in_c: Point

    def image(self) -> Superblock:
        """Return the superblock of the complete image."""
        return provocations.read_superblock(self.saved / self.scene.target_disk.name)


def prepare(scene: Scene, tell: Callable[[str], None]) -> Story:
    """Play the story in `scene`, whose disks are new, and keep its points in its folder."""
    tell("preparing: Linux A at work is saved")
    with scene.machine() as machine:
        guest = machine.guest
        guest.event("ready", timeout=_PATIENCE)
        if not all(hibernation.start_workload(guest, 0)["checks"].values()):
            raise LabError("the workload does not work")
        command = guest.start("kjump", "hibernate", "--to", TARGET_DEVICE, "--json")
        guest.event("save-begins", timeout=_PATIENCE)
        begun = _keep(machine, scene, "saving")
        if machine.wait_off(_PATIENCE) != "guest-shutdown":
            raise LabError("the machine did not switch off")
        saving = Point(scene.folder / "saving", time.monotonic() - begun)
    saved = _copy_disks(scene, "saved")
    tell("preparing: it is resumed")
    resuming, restoring = _resumed(scene, command, ("resuming", "restoring"))
    for disk in (scene.root_disk, scene.target_disk):
        copy_disk(saved / disk.name, disk)
    tell("preparing: it is resumed by way of C")
    _, in_c = _resumed(scene, command, ("resuming_in_c", "restoring_in_c"), provocations.NO_DIRECT)
    return Story(scene, command, saving, saved, resuming, restoring, in_c)


def _resumed(scene: Scene, command: int, names: tuple[str, str], options: str = "") -> tuple[Point, Point]:
    """Let the machine resume to the end; return its points when it is about to, and when it is about to restore."""
    with scene.machine(options) as machine:
        guest = machine.guest
        guest.event("resuming", timeout=_PATIENCE)
        begun = _keep(machine, scene, names[0])
        guest.event("restore-begins", timeout=_PATIENCE)
        resuming = Point(scene.folder / names[0], time.monotonic() - begun)
        begun = _keep(machine, scene, names[1])
        if guest.reply(command, _PATIENCE).status:
            raise LabError("the undisturbed story does not end well")
        restoring = Point(scene.folder / names[1], time.monotonic() - begun)
        provocations.power_off(machine)
    return resuming, restoring


def _keep(machine: Machine, scene: Scene, name: str) -> float:
    """Stop the machine, keep its state and disks in the folder `name`, let it go on; return when that was."""
    (scene.folder / name).mkdir()
    machine.save_state(scene.folder / name / "state")
    _copy_disks(scene, name)
    machine.go_on()
    return time.monotonic()


def _copy_disks(scene: Scene, name: str) -> Path:
    folder = scene.folder / name
    folder.mkdir(exist_ok=True)
    for disk in (scene.root_disk, scene.target_disk):
        copy_disk(disk, folder / disk.name)
    return folder


@dataclass(frozen=True)
class Kill:
    """A run that lost its power `moment` seconds after `point`, and what the next boot made of it."""

    point: str
    moment: float
    state: str
    outcome: str
    ok: bool


def kill(story: Story, name: str, moment: float, folder: Path) -> Kill:
    """Go on from the point `name`, take the power away after `moment` seconds, boot, and look; `folder` is scratch."""
    point: Point = getattr(story, name)
    scene = story.scene.fork(folder, point.folder)
    try:
        with scene.machine(state=point.state) as machine:
            machine.go_on()
            time.sleep(moment)
            machine.kill()
        try:
            state = provocations.read_superblock(scene.target_disk).state.name.lower()
        except FormatError as error:
            state = str(error)
        outcome, ok = boot_and_look(scene, story.command)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Kill(name, round(moment, 2), state, outcome, ok)


def boot_and_look(scene: Scene, command: int) -> tuple[str, bool]:
    """Boot; return what came of it, and whether that is one of the two good ends.

    These are: A is back with all its work, or an ordinary boot; and after either the root file system is clean.
    """
    try:
        with scene.machine() as machine:
            outcome, good = _boot(machine, command)
            provocations.power_off(machine)
    except LabError as error:
        return f"failed: {error}", False
    clean, said = scene.check_root_disk()
    return (outcome, good) if clean else (f"{outcome}, root damaged: {said.strip().splitlines()[-1]}", False)


def _boot(machine: Machine, command: int) -> tuple[str, bool]:
    guest = machine.guest
    first = guest.event("resuming", "not-resumed", timeout=_PATIENCE)
    if first.name == "not-resumed":
        guest.event("ready", timeout=_PATIENCE)
        # A saved system would have its workload.
        ordinary = guest.run("test", "-e", "/run/workload.sock", check=False).status != 0
        return "ordinary boot", ordinary
    reply = hibernation.resume(machine, command, timeout=_PATIENCE).reply
    if reply.status or not json.loads(reply.stdout)["resumed"]:
        return f"resumed, but kjump exited {reply.status}", False
    wrong = [name for name, good in hibernation.verify_workload(guest)["checks"].items() if not good]
    return (f"resumed without {', '.join(wrong)}", False) if wrong else ("resumed with all its work", True)
