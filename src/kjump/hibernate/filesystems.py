"""Whether A's file systems are as A left them.

A resumed kernel goes on with what it remembers of its disks. If another system has mounted one of them in
between, that memory is wrong and would destroy the file system. So B records a digest of the start of
every block device that A has mounted, where superblocks are, and the restorer compares.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kjump.errors import ImageError, TargetError
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
        return hashlib.sha256(target.read(0, min(_LENGTH, target.capacity // 4096 * 4096))).hexdigest()


def record(items: Iterable[dict[str, str]]) -> list[dict[str, Any]]:
    """Return `items` with the digest of each device added; TargetError when one cannot be read."""
    return [{**item, "digest": digest(item["device"])} for item in items]


def check(recorded: Iterable[dict[str, Any]]) -> None:
    """Raise ImageError naming the file system that is not as it was when the image was saved.

    A disk that has got another name since is found by its digest.
    """
    for item in recorded:
        if not any(_matches(device, item["digest"]) for device in _candidates(item["device"])):
            raise ImageError(
                f"the {item['type']} file system on {item['device']} (mounted at {item['where']}) has changed since "
                "the image was saved: resuming would destroy it"
            )


def _candidates(first: str) -> Iterable[str]:
    yield first
    yield from (device for device in block_devices() if device != first)


def _matches(device: str, wanted: str) -> bool:
    try:
        return digest(device) == wanted
    except TargetError:
        return False
