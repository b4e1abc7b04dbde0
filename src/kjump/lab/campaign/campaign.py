"""The fault campaign: provokes the faults of a hibernation in virtual machines, and checks the results.

For each fault a phrase must occur in kjump's message, and nothing may be lost: the system goes on unharmed, or the
machine boots as usual. Faults of the second kernel are provoked one after the other in one running machine, faults of
an image on copies of one image, losses of power from saved states of the machine (see `checkpoints`). The list of
faults is in `catalogue`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from kjump.errors import KjumpError, LabError
from kjump.formats.record import JsonObject
from kjump.lab.campaign import checkpoints, provocations
from kjump.lab.campaign.bit_flips import BitTrial
from kjump.lab.campaign.checkpoints import PowerLoss, PreparedHibernation
from kjump.lab.checks import Tell
from kjump.lab.machine import kernel_source as kernels
from kjump.lab.machine.disks import make_disk
from kjump.lab.machine.installation import Hardware, Installation
from kjump.lab.machine.qemu import VirtualMachine
from kjump.lab.machine.qemu_config import WATCHDOG, BadBlock

MIB = 1 << 20
HARDWARE = Hardware(memory=640 * MIB, cpus=2)
SMALL_DEVICE = "/dev/vdc"
FAILING_DEVICE = "/dev/vdd"
_SMALL = 8 * MIB
_FAILS_AT = 8 * MIB
"""An offset in bytes, about in the middle of the smallest image of this machine."""
_LOGS = "*.log"


@dataclass(frozen=True)
class CampaignSize:
    """Numbers of trials: losses of power while saving and restoring, flipped bits, and how many of those are booted."""

    save_losses: int = 40
    restore_losses: int = 20
    flips: int = 100
    booted_flips: int = 5


QUICK = CampaignSize(save_losses=3, restore_losses=2, flips=16, booted_flips=1)


@dataclass(frozen=True)
class Finding:
    """The result of one fault; `seed` is that of the random choices, `runs` has the single runs if there are many."""

    name: str
    expected: str
    seen: str
    ok: bool
    seconds: float
    seed: int
    runs: tuple[BitTrial | PowerLoss, ...] = ()

    def to_json(self) -> JsonObject:
        """Return it as a JSON object."""
        return asdict(self)


class Campaign:
    """What faults share: a running machine, a prepared hibernation, folders; a context manager.

    `scratch` is the folder of the current fault; `runs` gets its single runs if there are many.
    """

    def __init__(self, folder: Path, *, version: str, seed: int, size: CampaignSize, jobs: int, tell: Tell) -> None:
        """Use `folder` for all files, and run up to `jobs` machines at a time."""
        self.folder = folder
        self.version = version
        self.seed = seed
        self.size = size
        self.jobs = jobs
        self.tell = tell
        self.scratch = folder
        self.runs: list[BitTrial | PowerLoss] = []
        self._stack = ExitStack()
        self._machine: VirtualMachine | None = None
        self._numbers = itertools.count(1)

    def __enter__(self) -> Campaign:
        """Nothing to do."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the machine that still runs."""
        self._stack.close()

    def begin(self, name: str) -> None:
        """Begin the fault `name`: make its folder, and clear the list of runs."""
        self.runs = []
        self.scratch = self.folder / name
        self.scratch.mkdir(parents=True, exist_ok=True)

    def install(self, name: str) -> Installation:
        """Return a new system in the folder `name`."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return Installation(folder, kernels.build(self.version), HARDWARE, target_size=512 * MIB).prepare()

    @cached_property
    def running_system(self) -> Installation:
        """The system that is used for one fault after the other."""
        return self.install("running")

    def running(self) -> VirtualMachine:
        """Return a running machine whose memory is marked, with two more targets.

        One is too small (vdc), one fails in the middle (vdd).
        """
        if self._machine is None:
            system = self.running_system
            disks = (system.folder / "small.img", system.folder / "failing.img")
            make_disk(disks[0], _SMALL)
            make_disk(disks[1], system.target_size)
            broken = BadBlock(disk=3, operation="write", byte=_FAILS_AT)
            machine = system.machine(extra=WATCHDOG, more_disks=disks, bad_blocks=(broken,))
            self._machine = self._stack.enter_context(machine)
            self._machine.guest.event("ready", timeout=provocations.PATIENCE)
            provocations.mark(self._machine)
        return self._machine

    def stop_running(self) -> None:
        """End the running machine; the next fault gets a new one."""
        self._machine = None
        self._stack.close()

    @cached_property
    def prepared(self) -> PreparedHibernation:
        """A hibernation that has been done to its end, with its checkpoints saved."""
        return checkpoints.prepare(self.install("prepared"), self.tell)

    def saved(self) -> Installation:
        """Return a new system that is off, with a complete image; removes the disks of the one returned before."""
        remove_all_but_logs(self.scratch)
        return self.prepared.system.fork(self.scratch / f"saved-{next(self._numbers)}", self.prepared.saved)


def remove_all_but_logs(folder: Path) -> None:
    """Remove all files in and under `folder`, but for logs."""
    for path in list(folder.rglob("*")):
        if not path.is_dir() and not path.match(_LOGS):
            path.unlink()


@dataclass(frozen=True)
class ProvokedFault:
    """A fault: `provoke` returns kjump's message, in which `phrase` must occur; LabError for any other result."""

    name: str
    expected: str
    phrase: str
    provoke: Callable[[Campaign], str]


def fault(name: str, expected: str, phrase: str) -> Callable[[Callable[[Campaign], str]], ProvokedFault]:
    """Make a fault of the decorated function, which provokes it."""

    def made(provoke: Callable[[Campaign], str]) -> ProvokedFault:
        return ProvokedFault(name, expected, phrase, provoke)

    return made


def run(campaign: Campaign, faults: Sequence[ProvokedFault], names: Iterable[str] = ()) -> Iterator[Finding]:
    """Provoke those of `faults` with `names` (all if there are none), and yield the result of each.

    LabError when there is no such fault.
    """
    wanted = list(names)
    unknown = set(wanted) - {each.name for each in faults}
    if unknown:
        known = ", ".join(each.name for each in faults)
        raise LabError(f"there is no fault {', '.join(sorted(unknown))}; there are {known}")
    for each in faults:
        if not wanted or each.name in wanted:
            yield _provoke(campaign, each)


def _provoke(campaign: Campaign, each: ProvokedFault) -> Finding:
    campaign.begin(each.name)
    campaign.tell(each.name)
    begun = time.monotonic()
    try:
        seen = each.provoke(campaign)
        ok = each.phrase in seen
    except Exception as error:  # any error is this fault's result; the other faults must still be provoked
        seen, ok = str(error) if isinstance(error, KjumpError) else f"{type(error).__name__}: {error}", False
        campaign.stop_running()
    remove_all_but_logs(campaign.scratch)
    seconds = round(time.monotonic() - begun, 1)
    return Finding(each.name, each.expected, seen, ok, seconds, campaign.seed, tuple(campaign.runs))
