"""Snapshots: the second kernel saves this system, which then goes on.

The function `snapshot` returns once when that is done, and again, in the restored system, at each roll-back.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from kjump.errors import JumpError
from kjump.formats.record import JsonObject
from kjump.hibernate.away import Tell
from kjump.hibernate.post_mortem import reason
from kjump.hibernate.report import Report
from kjump.hibernate.suspend import Trip, TripRequest, travel
from kjump.host import root
from kjump.image.facts import Kind
from kjump.kexec.mailbox import Outcome
from kjump.target import filesystems
from kjump.target.file import create

_NUMBERED = re.compile(r"snapshot-(\d+)\.img")
_HEADROOM = 32 << 20
PAUSE = ("freeze", "boot", "hook", "save", "back")
"""The phases of a pause: this system freezes and jumps, the second kernel boots, its hook runs, it saves, it jumps
back and this system thaws."""


@dataclass
class Snapshot:
    """The result of a snapshot, for messages and as JSON: sizes in bytes, times in seconds.

    `rolled_back` tells that this system has just been restored from the snapshot, `count` how often that has been done.
    `pause` in `phases` is the time from just before to just after the jump, during which processes do not run (a
    process may wait a few milliseconds more for a CPU); the phases after it add up to it. `stamps` are the time stamp
    counter's values at the borders of the phases.
    """

    taken: bool
    rolled_back: bool
    count: int
    kind: str
    target: str
    window_bytes: int
    reason: str = ""
    clock_step: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    stamps: dict[str, int] = field(default_factory=dict)
    report: Report = field(default_factory=Report)

    def to_json(self) -> JsonObject:
        """Return it as one JSON object."""
        return vars(self) | {"report": self.report.to_json()}


def snapshot(
    request: TripRequest, *, tell: Tell = lambda _: None, go: Callable[[TripRequest, Tell], Trip] = travel
) -> Snapshot:
    """Save this system to `request.target` and go on; returns again, with `rolled_back` set, after a roll-back to it.

    `tell` gets one line for each step; `go` makes the trip to the second kernel. HostError, PlanError, TargetError or
    UsageError before the jump; JumpError when the second kernel could not save. This system goes on in any case.
    """
    kind = Kind.SNAPSHOT if request.dump_level is None else Kind.DUMP
    trip = go(replace(request, kind=kind), tell)
    rolled_back = trip.outcome == Outcome.RESUMED
    if rolled_back:
        filesystems.branch_off(trip.cookie.hex())
    passed = vars(trip.report.stamps) if trip.report.stamps else {}
    stamps = {"left": trip.left.stamp, **passed, "back": trip.back}
    return Snapshot(
        taken=trip.outcome in (Outcome.DONE, Outcome.RESUMED),
        rolled_back=rolled_back,
        count=trip.report.rolled_back,
        kind=kind,
        target=request.target,
        window_bytes=trip.window_bytes,
        reason=reason(trip.outcome, trip.report),
        clock_step=trip.clock_step,
        phases=_phases(trip, stamps),
        stamps=stamps,
        report=replace(trip.report, stamps=None),
    )


def numbered_file(folder: Path) -> Path:
    """Make the next target file (`snapshot-N.img`) in `folder`, large enough for the memory now in use.

    TargetError when it cannot be made there.
    """
    numbers = [int(found[1]) for path in folder.iterdir() if (found := _NUMBERED.fullmatch(path.name))]
    path = folder / f"snapshot-{max(numbers, default=0) + 1}.img"
    create(str(path), used_memory() * 21 // 20 + _HEADROOM).close()
    return path


def used_memory() -> int:
    """Return the bytes of RAM that are not free, which is about the largest size of an image."""
    lines = (line.partition(":") for line in root.at("/proc/meminfo").read_text().splitlines())
    values = {name: int(rest.split()[0]) << 10 for name, _, rest in lines}
    return values["MemTotal"] - values["MemFree"]


def _phases(trip: Trip, stamps: dict[str, int]) -> dict[str, float]:
    """Return seconds by phase; `stamps` are in chronological order, after a roll-back without those of the save."""
    prepare = {"prepare": round(trip.prepare_seconds, 3)}
    if len(stamps) < len(PAUSE) + 1:
        return prepare | {"away": round(trip.away, 3)}
    seconds = [trip.pace.seconds(a, b) for a, b in itertools.pairwise(stamps.values())]
    found = {"pause": trip.pace.seconds(stamps["left"], stamps["back"]), **dict(zip(PAUSE, seconds, strict=True))}
    return prepare | {name: round(value, 3) for name, value in found.items()}


def raise_unless_taken(result: Snapshot) -> None:
    """Raise JumpError with the reason when the second kernel could not save."""
    if not result.taken:
        raise JumpError(f"no snapshot taken: {result.reason}; this system went on unharmed")
