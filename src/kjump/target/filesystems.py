"""Whether A's file systems are as A left them.

A resumed kernel goes on with what it remembers of its disks. If another system has mounted one of them in
between, that memory is wrong and would destroy the file system. So B records a digest of the start of
every block device that A has mounted, where superblocks are, and of ext4 and XFS the end of the journal; the
restorer compares. For which types that is enough, `target.mounts` says.

A snapshot goes on running, and what it writes shows only when it is on the disk. So A also leaves in the mailbox how
much it had written to each device when it jumped, and a roll-back compares. Such counts mean something only as long
as they go on from there; the lineage says whether they do.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from kjump.errors import FormatError, ImageError, TargetError
from kjump.formats import ext4, xfs
from kjump.formats.record import Record
from kjump.host import root
from kjump.target import disks
from kjump.target.device import Target
from kjump.target.mounts import reader_of
from kjump.target.states import COUNTS, Departure, DiskState, FileSystem, Lineage, Mounted, Written

_LENGTH = 0x11000
"""Bytes that hold the superblock of ext4 (at 1 KiB), XFS (at 0) and Btrfs (at 64 KiB)."""

_LINEAGE = Path("/run/kjump/lineage")


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
        of_ext4, of_xfs = None, None
        with contextlib.suppress(FormatError):
            of_ext4 = ext4.identity(reader_of(target))
        with contextlib.suppress(FormatError):
            of_xfs = xfs.identity(reader_of(target))
        return DiskState(_digest(target), of_ext4, of_xfs)


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
        found.append(Written(item.device, tuple(int(fields[i]) for i in COUNTS if i < len(fields))))
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
    """Return in words, in brackets, how an ext4 or XFS differs from what was recorded; empty when that says nothing."""
    before = item.state
    if before.identity is None and before.xfs is None:
        return ""
    for device in _candidates(item.mounted.device):
        now = _state_or_none(device)
        difference = _difference(before, now) if now else None
        if difference is not None:
            return f" ({difference})" if difference else ""
    return " (no device has it any more)"


def _difference(before: DiskState, now: DiskState) -> str | None:
    """Return in words how a file system differs from itself; None when `now` is of another one."""
    if before.identity and now.identity and before.identity.superblock.uuid == now.identity.superblock.uuid:
        return ext4.difference(before.identity, now.identity)
    if before.xfs and now.xfs and before.xfs.uuid == now.xfs.uuid:
        return xfs.difference(before.xfs, now.xfs)
    return None


def _candidates(first: str) -> Iterable[str]:
    yield first
    yield from (device for device in disks.current().names() if device != first)


def _state_or_none(device: str) -> DiskState | None:
    try:
        return state(device)
    except TargetError:
        return None
