"""What is mounted, and whether a change of it by another system would be noticed.

A resume or roll-back over a file system that has changed destroys it. Before the jump only names and types are
looked at, and of ext4 and XFS the superblock; what the disks hold is recorded by the second kernel.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from enum import Enum

from kjump.errors import FormatError, TargetError
from kjump.formats import ext4, xfs
from kjump.host import root
from kjump.target.device import Target
from kjump.target.states import Mounted

_IN_MEMORY = re.compile(r"/dev/z?ram\d+$")
"""Devices whose contents are memory: they are in the image."""
_ESCAPE = re.compile(r"\\([0-7]{3})")
"""How the kernel writes blanks and backslashes in names (fs/proc_namespace.c): in three octal digits."""


def _types(names: str) -> frozenset[str]:
    return frozenset(names.split())


_READ_ONLY = _types("cramfs erofs iso9660 romfs squashfs")
_MEMORY = _types(
    "autofs bdev binder binfmt_misc bpf cgroup cgroup2 configfs cpuset dax debugfs devpts devtmpfs ecryptfs "
    "efivarfs functionfs fusectl hugetlbfs ipathfs mqueue nfsd nsfs nullfs overlay pipefs proc pstore ramfs rdt "
    "resctrl rootfs rpc_pipefs securityfs selinuxfs smackfs sockfs spufs sysfs tmpfs tracefs usbfs xenfs"
)
"""Types that keep nothing on a disk of their own: overlay's and ecryptfs's layers are mounts that count themselves."""
_ELSEWHERE = _types("9p afs ceph cifs coda fuse glusterfs lustre ncpfs nfs nfs4 orangefs smb3 smbfs virtiofs")
"""Types whose files are kept by another machine or program, which does not stop when this system does."""


class Sight(Enum):
    """What is known of changes that another system makes to what is mounted."""

    SEEN = "a change is noticed"
    NOTHING = "there is nothing to notice"
    ELSEWHERE = "the files are kept elsewhere"
    UNSEEN = "a change is not noticed"


@dataclass(frozen=True)
class Risk:
    """What is mounted and `sight` of it; `why` says more, if there is more to say."""

    mounted: Mounted
    sight: Sight
    why: str = ""

    def __str__(self) -> str:
        """Return it in words."""
        item = self.mounted
        return f"{item.type} on {item.device} (mounted at {item.where}{', ' + self.why if self.why else ''})"


def everything() -> tuple[Mounted, ...]:
    """Return all that this system has mounted, by its source and place, and the devices that it swaps to."""
    found = []
    for line in root.at("/proc/self/mounts").read_text(errors="replace").splitlines():
        device, where, kind, options = (_decoded(word) for word in line.split(" ")[:4])
        found.append(Mounted(device, where, kind, "rw" in options.split(",")))
    return (*found, *_swaps())


def _swaps() -> list[Mounted]:
    try:
        lines = root.at("/proc/swaps").read_text(errors="replace").splitlines()[1:]
    except FileNotFoundError:  # a kernel without swap
        return []
    devices = [device for device, kind in (line.split()[:2] for line in lines) if kind == "partition"]
    return [Mounted(_decoded(device), "", "swap", writable=True) for device in devices]


def mounted() -> tuple[Mounted, ...]:
    """Return the block devices that this system has mounted or swaps to, each once."""
    found: dict[str, Mounted] = {}
    for item in everything():
        if _is_device(item):
            before = found.get(item.device, item)
            found[item.device] = (
                item if item.type == "swap" else replace(before, writable=before.writable or item.writable)
            )
    return tuple(found.values())


def risks() -> tuple[Risk, ...]:
    """Return what is known of each thing that this system has mounted for writing, without what is memory only."""
    found: dict[tuple[str, str], Risk] = {}
    for item in everything():
        key = (item.device, item.type)
        if not item.writable or _IN_MEMORY.match(item.device) or key in found:
            continue
        risk = sight(item)
        if risk.sight is not Sight.NOTHING:
            found[key] = risk
    return tuple(found.values())


def unseen(found: Iterable[Risk], accepted: Collection[str]) -> list[Risk]:
    """Return of `found` what changes unseen and is of no type in `accepted`."""
    return [risk for risk in found if risk.sight is Sight.UNSEEN and risk.mounted.type not in accepted]


def refuse_unseen(accepted: Collection[str]) -> str:
    """Refuse (TargetError) while something is mounted for writing whose change would not be noticed.

    Returns a warning of what is accepted, and of what is kept elsewhere; empty when there is nothing of both.
    """
    found = risks()
    bad = unseen(found, accepted)
    if bad:
        raise TargetError(f"{in_words(bad)}: {CONSEQUENCE}; {remedy(bad)}")
    return warning(found)


CONSEQUENCE = "a change by another system would not be noticed, and resuming would then destroy it"


def warning(found: Collection[Risk]) -> str:
    """Return in words what is not recorded although it is mounted: what is kept elsewhere, or changes unseen; or ""."""
    elsewhere = [risk for risk in found if risk.sight is Sight.ELSEWHERE]
    accepted = unseen(found, ())
    parts = [f"{in_words(elsewhere)}: kept elsewhere, where it may change meanwhile"] if elsewhere else []
    parts += [f"{in_words(accepted)}: {CONSEQUENCE} (accepted)"] if accepted else []
    return "; ".join(parts)


def in_words(found: list[Risk]) -> str:
    """Return what is at risk, the first three by name."""
    more = f", and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(str(risk) for risk in found[:3]) + more


def remedy(found: Iterable[Risk]) -> str:
    """Return what to do about what changes unseen."""
    types = " ".join(f"--accept-unseen {kind}" for kind in sorted({risk.mounted.type for risk in found}))
    return f"unmount it or remount it read-only, or take the risk with {types}"


def sight(item: Mounted) -> Risk:
    """Return what is known of changes to `item`, which is mounted for writing."""
    kind = item.type
    if kind in _MEMORY or kind in _READ_ONLY:
        return Risk(item, Sight.NOTHING)
    if kind in _ELSEWHERE or kind.startswith("fuse."):
        return Risk(item, Sight.ELSEWHERE)
    if kind in ("btrfs", "swap"):
        return Risk(item, Sight.SEEN)
    if kind in ("ext3", "ext4"):
        return _by_log(item, ext4.has_journal_inside, "without a journal in it")
    if kind == "xfs":
        return _by_log(item, xfs.has_log_inside, "without a log in it")
    return Risk(item, Sight.UNSEEN)


def _by_log(item: Mounted, inside: Callable[[Callable[[int, int], bytes]], bool], otherwise: str) -> Risk:
    """Look whether the log is `inside`; who may not look takes the type for it."""
    try:
        with Target(item.device, writable=False) as target:
            good = inside(reader_of(target))
    except FormatError as error:
        return Risk(item, Sight.UNSEEN, str(error))
    except TargetError as error:
        return Risk(item, Sight.SEEN if os.geteuid() else Sight.UNSEEN, str(error))
    return Risk(item, Sight.SEEN) if good else Risk(item, Sight.UNSEEN, otherwise)


def reader_of(target: Target) -> Callable[[int, int], bytes]:
    """Return what reads `target` by (offset, length): FormatError past its end, for then a superblock is not true."""

    def read(offset: int, length: int) -> bytes:
        if offset + length > target.capacity:
            raise FormatError(f"a superblock on {target.path} points past the device's end")
        return target.read(offset, length)

    return read


def _is_device(item: Mounted) -> bool:
    # bcachefs names all its devices, with colons between.
    return item.device.startswith("/dev/") and item.type != "bcachefs" and not _IN_MEMORY.match(item.device)


def _decoded(word: str) -> str:
    """Return a name as it is, of what the kernel writes."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), word)
