"""Whether A's file systems are as A left them.

A resumed kernel goes on with what it remembers of its disks. If another system has mounted one of them in
between, that memory is wrong and would destroy the file system. So B records a digest of the start of
every block device that A has mounted, where superblocks are, and of ext4 the identity of superblock and journal; the
restorer compares.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kjump.errors import FormatError, ImageError, TargetError
from kjump.formats import ext4
from kjump.hibernate.target import Target, block_devices

_LENGTH = 0x11000
"""Bytes that hold the superblock of ext4 (at 1 KiB), XFS (at 0) and Btrfs (at 64 KiB)."""


def mounted() -> list[dict[str, str]]:
    """Return A's mounted block devices: {"device", "where", "type"} each, a device once."""
    found: dict[str, dict[str, str]] = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        device, where, kind = line.split()[:3]
        if device.startswith("/dev/"):
            found.setdefault(device, {"device": device, "where": where, "type": kind})
    return list(found.values())


def digest(device: str) -> str:
    """Return the SHA-256 of the start of `device`, as it is on the medium; TargetError when unreadable."""
    with Target(device, writable=False) as target:
        return _digest(target)


def _digest(target: Target) -> str:
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
                f"the {item['type']} file system on {item['device']} (mounted at {item['where']}) has changed since "
                f"the image was saved{_how(item)}: resuming would destroy it"
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
    yield from (device for device in block_devices() if device != first)


def _state_or_none(device: str) -> dict[str, Any] | None:
    try:
        return state(device)
    except TargetError:
        return None
