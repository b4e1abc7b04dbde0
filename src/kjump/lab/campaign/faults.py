"""The fault campaign: all that may go wrong in a hibernation, provoked for real, and what came of it.

Each fault says what must be seen; words of it must stand in what kjump said, and beyond that nothing may be lost: A
goes on unharmed, or the machine boots as usual. Faults of B are played on one running A after the other, faults
of an image on copies of one image, losses of power from kept states of the machine (see `story`).
"""

from __future__ import annotations

import itertools
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from kjump.errors import KjumpError, LabError
from kjump.formats.superblock import SUPERBLOCK_SIZE, State
from kjump.lab import hibernation
from kjump.lab.campaign import bit_flips, provocations
from kjump.lab.campaign import interrupted as stories
from kjump.lab.machine import kernel as kernels
from kjump.lab.machine.qemu import WATCHDOG, IoError, Machine
from kjump.lab.machine.scene import ROOT_DEVICE, TARGET_DEVICE, Hardware, Scene, make_disk

MIB = 1 << 20
HARDWARE = Hardware(memory=640 * MIB, cpus=2)
SMALL_DEVICE = "/dev/vdc"
FAILING_DEVICE = "/dev/vdd"
_SMALL = 8 * MIB
_FAILS_AT = 8 * MIB
"""About the middle of the smallest image that this machine gives."""
_MWAIT_CPU = "Skylake-Client"
_OTHER_CPU = "EPYC"
"""Like the lab's usual model one of AMD's: for those QEMU reserves a range that no other model's memory map has."""


@dataclass(frozen=True)
class Finding:
    """What came of one fault; `runs` has the single runs of a fault that is provoked many times."""

    name: str
    expected: str
    seen: str
    ok: bool
    seconds: float
    runs: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Size:
    """How often: kills while saving and while restoring, flipped bits and how many of those by a real boot."""

    save_kills: int = 40
    restore_kills: int = 20
    flips: int = 100
    booted_flips: int = 5


QUICK = Size(save_kills=3, restore_kills=2, flips=16, booted_flips=1)


class Campaign:
    """What the faults share: a running A, a finished story, folders. Use as a context manager."""

    def __init__(
        self, folder: Path, *, version: str, seed: int, size: Size, jobs: int, tell: Callable[[str], None]
    ) -> None:
        """Begin with nothing prepared; all that is made lies in `folder`. `jobs` machines run at a time."""
        self.folder = folder
        self.version = version
        self.seed = seed
        self.size = size
        self.jobs = jobs
        self.tell = tell
        self.runs: list[dict[str, Any]] = []
        self._stack = ExitStack()
        self._machine: Machine | None = None

    def __enter__(self) -> Campaign:
        """Nothing to do."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the machine that still runs."""
        self._stack.close()

    def scene(self, name: str, hardware: Hardware = HARDWARE) -> Scene:
        """Return a new scene in the folder `name`."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return Scene(folder, kernels.build(self.version), hardware, target_size=512 * MIB).prepare()

    @cached_property
    def running_scene(self) -> Scene:
        """The scene of the A that runs on and on."""
        return self.scene("running")

    def running(self) -> Machine:
        """Return a running A that is marked, with a target too small (vdc) and one that fails in the middle (vdd)."""
        if self._machine is None:
            scene = self.running_scene
            disks = (scene.folder / "small.img", scene.folder / "failing.img")
            make_disk(disks[0], _SMALL)
            make_disk(disks[1], scene.target_size)
            broken = IoError(disk=3, operation="write", byte=_FAILS_AT)
            machine = scene.machine(extra=WATCHDOG, more_disks=disks, io_errors=(broken,))
            self._machine = self._stack.enter_context(machine)
            self._machine.guest.event("ready", timeout=180)
            provocations.mark(self._machine)
        return self._machine

    def stop_running(self) -> None:
        """End the running A; the next fault gets a new one."""
        self._machine = None
        self._stack.close()

    @cached_property
    def story(self) -> stories.Story:
        """A hibernation played to its end, with its points kept."""
        return stories.prepare(self.scene("story"), self.tell)

    def saved(self) -> Scene:
        """Return a machine of its own that is off, with a complete image of an A at work."""
        folder = self.folder / "saved"
        shutil.rmtree(folder, ignore_errors=True)
        return self.story.scene.fork(folder, self.story.saved)


@dataclass(frozen=True)
class Fault:
    """A fault: `provoke` returns what was said, in which `words` must stand; LabError when worse was seen."""

    name: str
    expected: str
    words: str
    provoke: Callable[[Campaign], str]


FAULTS: list[Fault] = []


def _fault(name: str, expected: str, words: str) -> Callable[[Callable[[Campaign], str]], Callable[[Campaign], str]]:
    def register(function: Callable[[Campaign], str]) -> Callable[[Campaign], str]:
        FAULTS.append(Fault(name, expected, words, function))
        return function

    return register


# Refused before the jump, or A is back with the reason


def _hibernate(target: str = TARGET_DEVICE, *options: str) -> Callable[[Campaign], str]:
    def provoked(campaign: Campaign) -> str:
        return _last_line(provocations.try_to_hibernate(campaign.running(), *options, target=target).stderr)

    return provoked


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1].removeprefix("kjump: ")


_fault("target-missing", "refused before the jump", "/dev/nowhere cannot be opened")(_hibernate("/dev/nowhere"))
_fault("target-mounted", "refused before the jump", "it is mounted")(_hibernate(ROOT_DEVICE))
_fault("target-too-small", "A is back with the reason", "the output is too small")(_hibernate(SMALL_DEVICE))
_fault("write-error", "A is back with the reason", "Input/output error; this system went on unharmed")(
    _hibernate(FAILING_DEVICE)
)
_fault("exception", "A is back with the reason", "unexpected RuntimeError in the second kernel")(
    _hibernate(TARGET_DEVICE, "--fault", "exception@0.5")
)
for _cpu in range(HARDWARE.cpus):
    _fault(f"panic-cpu{_cpu}", "A is back with B's panic", "sysrq triggered crash")(
        _hibernate(TARGET_DEVICE, "--fault", f"panic:{_cpu}@0.5")
    )
_fault("time-limit", "A is back with the reason", "longer than its time limit of 20 s")(
    _hibernate(TARGET_DEVICE, "--fault", "hang", "--time-limit", "20")
)


@_fault("target-exchanged", "A is back with the reason", "was the disk exchanged?")
def _exchanged(campaign: Campaign) -> str:
    machine = campaign.running()
    with provocations.disk_exchanged_when_armed(campaign.running_scene.target_disk):
        return _last_line(provocations.try_to_hibernate(machine).stderr)


@_fault("cancel", "A is back, the target is invalid", "the save was cancelled by key")
def _cancel(campaign: Campaign) -> str:
    seen = _last_line(provocations.cancel_by_key(campaign.running()).stderr)
    state = provocations.read_superblock(campaign.running_scene.target_disk).state
    if state is not State.INVALID:
        raise LabError(f"the target says {state.name.lower()}")
    return seen


@_fault("panic-on-standby", "A is back with B's panic; the kernel on disk waits on", "sysrq triggered crash")
def _panic_on_standby(campaign: Campaign) -> str:
    machine = campaign.running()
    with provocations.standing_by_on_disk(machine):
        return _last_line(provocations.try_to_hibernate(machine, "--fault", "panic:1@0.5").stderr)


@_fault("standby-damaged", "refused before the jump", "is damaged")
def _standby_damaged(campaign: Campaign) -> str:
    machine = campaign.running()
    with provocations.standing_by_on_disk(machine) as file:
        machine.guest.run("dd", "if=/dev/zero", f"of={file}", "bs=64", "seek=30000", "count=1", "conv=notrunc")
        return _last_line(provocations.try_to_hibernate(machine).stderr)


@_fault("panic-while-b-boots", "a restart and an ordinary boot, with the reason", "no image was written")
def _panic_while_booting(campaign: Campaign) -> str:
    provocations.panic_while_b_boots(campaign.running())
    campaign.stop_running()
    return provocations.refusal_at_boot(campaign.running_scene)


# Images that must not run: the machine boots as usual


_USUAL = "an ordinary boot, with the reason"


@_fault("target-gone-at-boot", _USUAL, "does not appear")
def _gone(campaign: Campaign) -> str:
    return provocations.refusal_at_boot(campaign.saved(), "kjump.resume=/dev/vdz")


@_fault("truncated", _USUAL, "ends before byte")
def _truncated(campaign: Campaign) -> str:
    scene = campaign.saved()
    with scene.target_disk.open("r+b") as disk:
        disk.truncate(campaign.story.image().image_length // 2 // 4096 * 4096)
    return provocations.refusal_at_boot(scene)


@_fault("boot-without-resume", f"{_USUAL}; and again at the next one", "told not to resume")
def _without(campaign: Campaign) -> str:
    scene = campaign.saved()
    provocations.refusal_at_boot(scene, "kjump.noresume")
    return provocations.refusal_at_boot(scene)


@_fault("second-resume", "the first brings A back, the second is an ordinary boot", "resumed already")
def _second(campaign: Campaign) -> str:
    scene = campaign.saved()
    outcome, good = stories.boot_and_look(scene, campaign.story.command)
    if not good or not outcome.startswith("resumed"):
        raise LabError(outcome)
    return provocations.refusal_at_boot(scene)


@_fault("other-memory", _USUAL, "memory map is not the one")
def _memory(campaign: Campaign) -> str:
    more = replace(HARDWARE, memory=HARDWARE.memory + 128 * MIB)
    return provocations.refusal_at_boot(campaign.saved(), hardware=more)


@_fault("other-cpu", _USUAL, "the image was saved on a CPU")
def _cpu_model(campaign: Campaign) -> str:
    return provocations.refusal_at_boot(campaign.saved(), hardware=replace(HARDWARE, cpu=_OTHER_CPU))


@_fault("file-system-changed", f"{_USUAL}, which names the file system", "ext4 file system on /dev/vda (mounted at /)")
def _changed(campaign: Campaign) -> str:
    scene = campaign.saved()
    with scene.machine("kjump.resume=") as machine:  # another system, which does not know of kjump
        machine.guest.event("ready", timeout=180)
        provocations.power_off(machine)
    return provocations.refusal_at_boot(scene)


def _damaged_in_the_middle(campaign: Campaign) -> Scene:
    scene = campaign.saved()
    provocations.flip(scene.target_disk, SUPERBLOCK_SIZE + campaign.story.image().image_length // 2)
    return scene


@_fault("restore-failed-once", f"{_USUAL}; and again at the next one", "a boot did not resume it")
def _failed_once(campaign: Campaign) -> str:
    scene = _damaged_in_the_middle(campaign)
    provocations.failing_restore(scene)
    return provocations.refusal_at_boot(scene)


@_fault("restore-failed-in-c", "a restart and an ordinary boot; and again at the next one", "tried before and failed")
def _failed_in_c(campaign: Campaign) -> str:
    scene = _damaged_in_the_middle(campaign)
    provocations.failing_restore_in_c(scene)
    return provocations.refusal_at_boot(scene)


@_fault("read-error", f"{_USUAL}; and again at the next one", "Input/output error")
def _read_error(campaign: Campaign) -> str:
    middle = SUPERBLOCK_SIZE + campaign.story.image().image_length // 2
    return provocations.failing_restore(campaign.saved(), IoError(disk=1, operation="read", byte=middle))


@_fault("bit-flips", "no flipped bit is ever run: refused, or without any effect", "0 taken")
def _flips(campaign: Campaign) -> str:
    disk = campaign.saved().target_disk
    chosen = bit_flips.choose(disk, campaign.size.flips, random.Random(campaign.seed))
    every = max(1, len(chosen) // max(1, campaign.size.booted_flips))
    booted = chosen[every // 2 :: every][: campaign.size.booted_flips]
    judge = bit_flips.Judge(disk, HARDWARE.memory)
    for flip in chosen:
        if flip not in booted:
            provocations.flip(disk, flip.offset, flip.bit)
            campaign.runs.append(_tried("code", flip, partial(judge.verdict, disk)))
            provocations.flip(disk, flip.offset, flip.bit)
    for flip in booted:
        campaign.runs.append(_tried("boot", flip, partial(_boot_flipped, campaign, flip)))
    how = Counter(run["by"] for run in campaign.runs)
    harmless = sum(run["seen"] == "no difference" for run in campaign.runs)
    taken = sum(not run["ok"] for run in campaign.runs)
    refused = len(campaign.runs) - harmless - taken
    return (
        f"{len(campaign.runs)} bits ({how['code']} by the resume's own code on this host, {how['boot']} by booting): "
        f"{refused} refused, {harmless} without effect, {taken} taken"
    )


def _tried(how: str, flip: bit_flips.Flip, attempt: Callable[[], str]) -> dict[str, Any]:
    try:
        seen, ok = attempt(), True
    except KjumpError as error:
        seen, ok = str(error), False
    return {"by": how, "part": flip.part, "byte": flip.offset, "bit": flip.bit, "seen": seen, "ok": ok}


def _boot_flipped(campaign: Campaign, flip: bit_flips.Flip) -> str:
    scene = campaign.saved()
    provocations.flip(scene.target_disk, flip.offset, flip.bit)
    return provocations.failing_restore(scene) if flip.part == "pages" else provocations.refusal_at_boot(scene)


# Loss of power


def _kills(campaign: Campaign, moments: Iterable[tuple[str, float]]) -> str:
    story = campaign.story
    numbers = itertools.count()

    def one(point_and_moment: tuple[str, float]) -> stories.Kill:
        number = next(numbers)
        result = stories.kill(story, *point_and_moment, campaign.folder / f"kill-{number}")
        campaign.tell(f"  power lost {result.moment:.2f} s after {result.point}: {result.state}; {result.outcome}")
        return result

    with ThreadPoolExecutor(campaign.jobs) as pool:
        results = list(pool.map(one, moments))
    campaign.runs += [vars(result) for result in results]
    good = sum(result.ok for result in results)
    states = ", ".join(f"{count} {state}" for state, count in Counter(r.state for r in results).most_common())
    outcomes = ", ".join(f"{count} {what}" for what, count in Counter(r.outcome for r in results).most_common())
    return f"{len(results)} kills (seed {campaign.seed}), image then: {states}; {outcomes}; {len(results) - good} bad"


def _moments(point: str, length: float, count: int, generator: random.Random) -> Iterator[tuple[str, float]]:
    """Go through `count` random moments, one in each of as many equal parts of `length` seconds."""
    for index in range(count):
        yield point, (index + generator.random()) * length / count


_TWO_ENDS = "A is back with all its work, or an ordinary boot; the root file system clean after either"


@_fault("killed-while-saving", _TWO_ENDS, "; 0 bad")
def _kill_save(campaign: Campaign) -> str:
    generator = random.Random(campaign.seed)
    # A little further than it took: some shall find the image complete.
    length = campaign.story.saving.length * 1.1
    return _kills(campaign, _moments("saving", length, campaign.size.save_kills, generator))


@_fault("killed-while-restoring", _TWO_ENDS, "; 0 bad")
def _kill_restore(campaign: Campaign) -> str:
    generator, story = random.Random(campaign.seed), campaign.story
    early = campaign.size.restore_kills // 4
    in_c = (campaign.size.restore_kills - early) // 2
    late = campaign.size.restore_kills - early - in_c
    moments = [
        *_moments("resuming", story.resuming.length, early, generator),
        *_moments("restoring", story.restoring.length, late, generator),
        *_moments("restoring_in_c", story.restoring_in_c.length, in_c, generator),
    ]
    return _kills(campaign, moments)


# Machines on which it must work all the same


def _round_trip(options: str = "", hardware: Hardware = HARDWARE) -> Callable[[Campaign], str]:
    def provoked(campaign: Campaign) -> str:
        folder = campaign.folder / "round-trip"
        folder.mkdir(exist_ok=True)
        try:
            demo = hibernation.run(folder, version=campaign.version, hardware=hardware, options=options)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        wrong = [name for name, good in demo.checks.items() if not good]
        return f"failed: {', '.join(wrong)}" if wrong or not demo.checks else f"all {len(demo.checks)} checks hold"

    return provoked


_fault("init-on-free", "A is back with all its work", "checks hold")(_round_trip("init_on_free=1"))
_fault("mwait-cpu", "A is back with all its work", "checks hold")(
    _round_trip(hardware=replace(HARDWARE, cpus=3, cpu=_MWAIT_CPU))
)
_fault("no5lvl", "A is back with all its work", "checks hold")(_round_trip("no5lvl"))


def run(campaign: Campaign, names: Iterable[str] = ()) -> Iterator[Finding]:
    """Provoke the faults called `names` (all when there are none), and go through what came of each.

    LabError when there is no such fault.
    """
    wanted = list(names)
    unknown = set(wanted) - {fault.name for fault in FAULTS}
    if unknown:
        known = ", ".join(fault.name for fault in FAULTS)
        raise LabError(f"there is no fault {', '.join(sorted(unknown))}; there are {known}")
    for fault in FAULTS:
        if not wanted or fault.name in wanted:
            yield _provoke(campaign, fault)


def _provoke(campaign: Campaign, fault: Fault) -> Finding:
    campaign.runs = []
    campaign.tell(fault.name)
    begun = time.monotonic()
    try:
        seen = fault.provoke(campaign)
        ok = fault.words in seen
    except Exception as error:  # whatever it is, it must not hide what comes of the others
        seen, ok = str(error) if isinstance(error, KjumpError) else f"{type(error).__name__}: {error}", False
        campaign.stop_running()
    return Finding(fault.name, fault.expected, seen, ok, round(time.monotonic() - begun, 1), campaign.runs)
