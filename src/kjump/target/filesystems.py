"""Whether A's file systems are as A left them.

A resumed kernel goes on with what it remembers of its disks. If another system has mounted one of them in
between, that memory is wrong and would destroy the file system. So B records a digest of the start of
every block device that A has mounted, where superblocks are, and of ext4 the identity of superblock and journal; the
restorer compares.

That is enough for a system that was off: whoever mounts a file system writes its superblock. A snapshot goes on
running, and what it writes then shows in no superblock for long. So A also leaves in the mailbox how much it had
written to each device when it jumped, and a roll-back compares. Such counts mean something only as long as they go
on from there; the lineage says whether they do.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kjump.errors import FormatError, ImageError, TargetError
from kjump.formats import ext4
from kjump.formats.record import JsonObject, Record
from kjump.host import root
from kjump.target import disks
from kjump.target.device import Target

_LENGTH = 0x11000
"""Bytes that hold the superblock of ext4 (at 1 KiB), XFS (at 0) and Btrfs (at 64 KiB)."""


_IN_MEMORY = re.compile(r"/dev/z?ram\d+$")
"""Devices whose contents are memory: they are in the image."""

_COUNTS = (6, 13)
"""Fields of /sys/dev/block/*/stat (Documentation/block/stat.rst): sectors written and discarded.

Not the number of writes, field 4: on 6.12 each sync of an idle ext4 adds one there, a flush without data.
"""

_LINEAGE = Path("/run/kjump/lineage")


_PATH = 4096
"""Characters of a path; a mount point may be as long."""
_MOST_DEVICES = 4096


@dataclass(frozen=True)
class Mounted:
    """A block device that is mounted at `where`, or swapped to (then `type` is "swap" and `where` empty)."""

    device: str
    where: str
    type: str
    writable: bool

    def __str__(self) -> str:
        """Return it in words."""
        if self.type == "swap":
            return f"the swap space on {self.device}"
        return f"the {self.type} file system on {self.device} (mounted at {self.where})"

    def to_json(self) -> JsonObject:
        """Return it for a job and for an image's facts."""
        return {"device": self.device, "where": self.where, "type": self.type, "writable": self.writable}

    @classmethod
    def from_json(cls, record: Record) -> Mounted:
        """Read what `to_json` gave; FormatError."""
        return cls(
            record.text("device", limit=_PATH),
            record.text("where", limit=_PATH),
            record.text("type", limit=_PATH),
            record.flag("writable"),
        )


@dataclass(frozen=True)
class DiskState:
    """What tells the state of a file system: the SHA-256 of its start and, of an ext4, its identity."""

    digest: str
    identity: ext4.Identity | None = None

    def to_json(self) -> JsonObject:
        """Return it for an image's facts."""
        return {"digest": self.digest, "identity": self.identity.to_json() if self.identity else None}

    @classmethod
    def from_json(cls, record: Record) -> DiskState:
        """Read what `to_json` gave; FormatError."""
        return cls(record.hexadecimal("digest", length=32).hex(), record.maybe("identity", ext4.Identity.from_json))


@dataclass(frozen=True)
class FileSystem:
    """A file system that was mounted when the system was saved, and its state then."""

    mounted: Mounted
    state: DiskState

    def to_json(self) -> JsonObject:
        """Return it for an image's facts."""
        return self.mounted.to_json() | {"state": self.state.to_json()}

    @classmethod
    def from_json(cls, record: Record) -> FileSystem:
        """Read what `to_json` gave; FormatError."""
        return cls(Mounted.from_json(record), record.map("state", DiskState.from_json))


@dataclass(frozen=True)
class Lineage:
    """Which history a system has: its boot, and the roll-backs since, of which only the last counts.

    `id` changes with each boot and each roll-back; `base` is the cookie (hexadecimal) of the snapshot that was rolled
    back to last, empty when there was none.
    """

    id: str
    base: str = ""

    def to_json(self) -> JsonObject:
        """Return it for the mailbox, for an image's facts, and for the file that remembers it."""
        return {"id": self.id, "base": self.base}

    @classmethod
    def from_json(cls, record: Record) -> Lineage:
        """Read what `to_json` gave; FormatError."""
        return cls(record.text("id", limit=_PATH), record.text("base", limit=_PATH))


@dataclass(frozen=True)
class Written:
    """How much was written to a device since it is there: the counts of its statistics (`_COUNTS`)."""

    device: str
    counts: tuple[int, ...]

    def to_json(self) -> JsonObject:
        """Return it for the mailbox and for an image's facts."""
        return {"device": self.device, "counts": list(self.counts)}

    @classmethod
    def from_json(cls, record: Record) -> Written:
        """Read what `to_json` gave; FormatError."""
        return cls(record.text("device", limit=_PATH), record.integers("counts", limit=len(_COUNTS)))


@dataclass(frozen=True)
class Departure:
    """What the first kernel says of its disks at the jump, and cannot say sooner."""

    lineage: Lineage
    written: tuple[Written, ...]

    def to_json(self) -> JsonObject:
        """Return it for the mailbox and for an image's facts."""
        return {"lineage": self.lineage.to_json(), "written": [item.to_json() for item in self.written]}

    @classmethod
    def from_json(cls, record: Record) -> Departure:
        """Read what `to_json` gave; FormatError."""
        items = record.items("written", limit=_MOST_DEVICES)
        return cls(record.map("lineage", Lineage.from_json), tuple(Written.from_json(item) for item in items))


def mounted() -> tuple[Mounted, ...]:
    """Return the block devices that this system has mounted or swaps to, each once."""
    found: dict[str, Mounted] = {}
    for line in root.at("/proc/self/mounts").read_text().splitlines():
        device, where, kind, options = line.split()[:4]
        item = found.setdefault(device, Mounted(device, where, kind, writable=False))
        found[device] = replace(item, writable=item.writable or "rw" in options.split(","))
    for line in root.at("/proc/swaps").read_text().splitlines()[1:]:
        device, kind = line.split()[:2]
        if kind == "partition":
            found[device] = Mounted(device, "", "swap", writable=True)
    return tuple(item for name, item in found.items() if name.startswith("/dev/") and not _IN_MEMORY.match(name))


def digest(device: str) -> str:
    """Return the SHA-256 of the start of `device`, as it is on the medium; TargetError when unreadable."""
    with Target(device, writable=False) as target:
        return _digest(target)


def _digest(target: Target) -> str:
    import hashlib  # not needed before the jump, and slow to load

    return hashlib.sha256(target.read(0, min(_LENGTH, target.capacity // 4096 * 4096))).hexdigest()


def state(device: str) -> DiskState:
    """Return what tells the state of the file system on `device`; TargetError when it cannot be read."""
    with Target(device, writable=False) as target:
        identity = None
        with contextlib.suppress(FormatError):
            identity = ext4.identity(target.read)
        return DiskState(_digest(target), identity)


def with_states(items: Iterable[Mounted]) -> tuple[FileSystem, ...]:
    """Return `items` with the state of each device; TargetError when one cannot be read."""
    return tuple(FileSystem(item, state(item.device)) for item in items)


def check(recorded: Iterable[FileSystem]) -> None:
    """Raise ImageError naming the file system that is not as it was when the image was saved, and how it differs.

    A disk that has got another name since is found by its state.
    """
    for item in recorded:
        if not any(_state_or_none(device) == item.state for device in _candidates(item.mounted.device)):
            raise ImageError(
                f"{item.mounted} has changed since the image was saved{_how(item)}: resuming would destroy it"
            )


def written(items: Iterable[Mounted]) -> tuple[Written, ...]:
    """Return how much was written to each device of `items`; devices that do not say lack."""
    found = []
    for item in items:
        try:
            number = root.at(item.device).stat().st_rdev
            fields = root.at(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat").read_text().split()
        except OSError:
            continue
        found.append(Written(item.device, tuple(int(fields[i]) for i in _COUNTS if i < len(fields))))
    return tuple(found)


def lineage() -> Lineage:
    """Return which history this system has."""
    boot = root.at("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError, FormatError):
        known = Lineage.from_json(Record.parse(root.at(_LINEAGE).read_bytes(), str(_LINEAGE)))
        if known.id.startswith(boot):
            return known
    return Lineage(boot)


def departure(items: Iterable[Mounted]) -> Departure:
    """Return what can be said of the disks of `items` now; of use only just before the jump."""
    return Departure(lineage(), written(items))


def branch_off(base: str) -> None:
    """Note that this system has just been rolled back to the snapshot with the cookie `base`."""
    boot = root.at("/proc/sys/kernel/random/boot_id").read_text().strip()
    place = root.at(_LINEAGE)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(Lineage(f"{boot}/{os.urandom(8).hex()}", base).to_json()))


def check_unwritten(recorded: Sequence[FileSystem], then: Departure | None, base: str, *, cold: bool) -> None:
    """Raise ImageError naming a file system that may have been written to since a snapshot was taken.

    `then` is what its system said at the jump, None when nothing; `base` is the snapshot's cookie (hexadecimal). With
    `cold` that system does not run any more, and nobody knows how much it wrote.
    """
    items = [item.mounted for item in recorded if item.mounted.writable]
    now = lineage()
    same_history = not cold and (now.base == base or (then is not None and now.id == then.lineage.id))
    counts = set(written(items)) if same_history else set()
    unchanged = {item.device for item in (then.written if then else ()) if item in counts}
    for item in items:
        if item.device not in unchanged:
            how = "has been written to" if same_history else "may have been written to"
            raise ImageError(
                f"{item} {how} since the snapshot was taken: rolling back would destroy it; take snapshots "
                "with --hook, which puts file systems back too"
            )


def _how(item: FileSystem) -> str:
    """Return in words, in brackets, how an ext4 differs from what was recorded of it; empty when that says nothing."""
    before = item.state.identity
    if before is None:
        return ""
    for device in _candidates(item.mounted.device):
        found = _state_or_none(device)
        now = found.identity if found else None
        if now and now.superblock.uuid == before.superblock.uuid:
            difference = ext4.difference(before, now)
            return f" ({difference})" if difference else ""
    return " (no device has it any more)"


def _candidates(first: str) -> Iterable[str]:
    yield first
    yield from (device for device in disks.current().names() if device != first)


def _state_or_none(device: str) -> DiskState | None:
    try:
        return state(device)
    except TargetError:
        return None
