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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kjump.errors import FormatError, ImageError, TargetError
from kjump.formats import ext4
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


def mounted() -> list[dict[str, Any]]:
    """Return the block devices that A has mounted or swaps to: {"device", "where", "type", "writable"}, each once."""
    found: dict[str, dict[str, Any]] = {}
    for line in root.at("/proc/self/mounts").read_text().splitlines():
        device, where, kind, options = line.split()[:4]
        item = found.setdefault(device, {"device": device, "where": where, "type": kind, "writable": False})
        item["writable"] |= "rw" in options.split(",")
    for line in root.at("/proc/swaps").read_text().splitlines()[1:]:
        device, kind = line.split()[:2]
        if kind == "partition":
            found[device] = {"device": device, "where": "", "type": "swap", "writable": True}
    return [item for name, item in found.items() if name.startswith("/dev/") and not _IN_MEMORY.match(name)]


def digest(device: str) -> str:
    """Return the SHA-256 of the start of `device`, as it is on the medium; TargetError when unreadable."""
    with Target(device, writable=False) as target:
        return _digest(target)


def _digest(target: Target) -> str:
    import hashlib  # not needed before the jump, and slow to load

    return hashlib.sha256(target.read(0, min(_LENGTH, target.capacity // 4096 * 4096))).hexdigest()


def state(device: str) -> dict[str, Any]:
    """Return what tells the state of the file system on `device`: {"digest"}, and its "identity" if it is ext4.

    TargetError when it cannot be read.
    """
    with Target(device, writable=False) as target:
        found: dict[str, Any] = {"digest": _digest(target)}
        with contextlib.suppress(FormatError):
            found["identity"] = ext4.identity(target.read)
        return found


def record(items: Iterable[dict[str, str]]) -> list[dict[str, Any]]:
    """Return `items` with the state of each device added; TargetError when one cannot be read."""
    return [{**item, **state(item["device"])} for item in items]


def check(recorded: Iterable[dict[str, Any]]) -> None:
    """Raise ImageError naming the file system that is not as it was when the image was saved, and how it differs.

    A disk that has got another name since is found by its state.
    """
    for item in recorded:
        wanted = {name: item[name] for name in ("digest", "identity") if name in item}
        if not any(_state_or_none(device) == wanted for device in _candidates(item["device"])):
            raise ImageError(
                f"{_name(item)} has changed since the image was saved{_how(item)}: resuming would destroy it"
            )


def _name(item: dict[str, Any]) -> str:
    if item["type"] == "swap":
        return f"the swap space on {item['device']}"
    return f"the {item['type']} file system on {item['device']} (mounted at {item['where']})"


def written(items: Iterable[dict[str, Any]]) -> dict[str, list[int]]:
    """Return how much was written to each device of `items` since it is there; devices that do not say lack."""
    found = {}
    for item in items:
        try:
            number = root.at(item["device"]).stat().st_rdev
            fields = root.at(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat").read_text().split()
        except OSError:
            continue
        found[item["device"]] = [int(fields[i]) for i in _COUNTS if i < len(fields)]
    return found


def lineage() -> dict[str, str]:
    """Return which history this system has: its boot, and the roll-backs since, of which only the last counts.

    `id` changes with each boot and each roll-back; `base` is the cookie of the snapshot that was rolled back to last.
    """
    boot = root.at("/proc/sys/kernel/random/boot_id").read_text().strip()
    try:
        known: dict[str, str] = json.loads(root.at(_LINEAGE).read_text())
        if known["id"].startswith(boot):
            return known
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {"id": boot, "base": ""}


def branch_off(base: str) -> None:
    """Note that this system has just been rolled back to the snapshot with the cookie `base`."""
    boot = root.at("/proc/sys/kernel/random/boot_id").read_text().strip()
    place = root.at(_LINEAGE)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps({"id": f"{boot}/{os.urandom(8).hex()}", "base": base}))


def check_unwritten(recorded: Iterable[dict[str, Any]], words: dict[str, Any], base: str, *, cold: bool) -> None:
    """Raise ImageError naming a file system that may have been written to since a snapshot was taken.

    `words` are those that A left at the jump (`lineage` and `written`), `base` is the snapshot's cookie. With `cold`
    the snapshot's system does not run any more, and nobody knows how much it wrote.
    """
    items = [item for item in recorded if item.get("writable", True)]
    now, then = lineage(), words.get("lineage", {})
    same_history = not cold and (now["base"] == base or now["id"] == then.get("id"))
    counts = written(items) if same_history else {}
    for item in items:
        before = words.get("written", {}).get(item["device"])
        if before is None or counts.get(item["device"]) != before:
            how = "has been written to" if same_history else "may have been written to"
            raise ImageError(
                f"{_name(item)} {how} since the snapshot was taken: rolling back would destroy it; take snapshots "
                "with --hook, which puts file systems back too"
            )


def _how(item: dict[str, Any]) -> str:
    """Return in words, in brackets, how an ext4 differs from what was recorded of it; empty when that says nothing."""
    if "identity" not in item:
        return ""
    for device in _candidates(item["device"]):
        now = (_state_or_none(device) or {}).get("identity")
        if now and now["superblock"]["uuid"] == item["identity"]["superblock"]["uuid"]:
            words = ext4.difference(item["identity"], now)
            return f" ({words})" if words else ""
    return " (no device has it any more)"


def _candidates(first: str) -> Iterable[str]:
    yield first
    yield from (device for device in disks.current().names() if device != first)


def _state_or_none(device: str) -> dict[str, Any] | None:
    try:
        return state(device)
    except TargetError:
        return None
