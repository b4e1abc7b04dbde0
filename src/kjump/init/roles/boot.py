"""The boot role: resume from a valid image if there is one, else mount the root file system and hand over.

What fits into memory beside this kernel is read by it, and put in place by the gate; for more it boots C, which is
confined to B's window. `kjump.nodirect` takes that way in any case.

A boot that does not resume invalidates a complete image before it mounts anything: what the image remembers
of the disks is no longer true from then on. A snapshot is another matter: it is meant to be gone back to later, by
`kjump rollback`, or by a boot that is told so with kjump.rollback=; boots leave it as it is.
"""

from __future__ import annotations

import contextlib

from kjump.errors import HostError, TargetError, in_words
from kjump.formats.superblock import SUPERBLOCK_SIZE, State
from kjump.hibernate.report import Report
from kjump.hibernate.resume import (
    open_for_resume,
    prepare_resume,
    prepare_rollback,
    window_of,
    with_clock,
)
from kjump.host import root
from kjump.image.destination import Aside
from kjump.image.restore import OpenImage
from kjump.init.finish_restore import bring_back, failures_noted
from kjump.init.system import Role, mount, superblock_offset, switch_root, uptime, wait_for_device
from kjump.initramfs.contents import KERNEL, own_initrd
from kjump.ranges import Range
from kjump.target.device import Target, open_at

_DEVICE_TIMEOUT = 5.0
_ROOT = "/newroot"
_RTC_ACCURACY = 1.0
"""Seconds: this kernel has just set its clock from the RTC."""


def run(role: Role) -> None:
    """Resume, or boot as usual; raises only when there is nothing to boot."""
    snapshot = role.options.get("kjump.rollback", "")
    if snapshot:
        _try_to_roll_back(role, snapshot)
    target = role.options.get("kjump.resume", "")
    if target:
        _try_to_resume(role, target)
    if role.room:
        with contextlib.suppress(Exception):
            role.room.release()
    boot_as_usual(role)


def _try_to_roll_back(role: Role, path: str) -> None:
    """Jump into C if the snapshot on `path` is good; say in one sentence why not, and leave it as it is."""
    try:
        if not wait_for_device(path, _DEVICE_TIMEOUT):
            raise TargetError(f"{path} does not appear")
        with open_at(path, superblock_offset(role.options, "kjump.rollback_offset"), writable=True) as target:
            prepared = prepare_rollback(
                target, KERNEL.read_bytes(), own_initrd(), cold=True, clock_accuracy=_RTC_ACCURACY
            )
            role.status.send("resuming", uptime=uptime())
            role.console.line(f"kjump: rolling back to {path}")
            boot = root.at("/proc/sys/kernel/random/boot_id").read_text().strip()
            prepared.go(Report(boot_seconds_cold=uptime()), boot=boot)
    except BaseException as error:  # whatever it is: the machine boots
        why = in_words(error)
        role.console.line(f"kjump: not rolled back: {why}; booting as usual")
        role.status.send("not-rolled-back", reason=why)


def _try_to_resume(role: Role, path: str) -> None:
    """Jump into C if the image on `path` is good; say in one sentence why not, and make it unusable."""
    why = "the boot was told not to resume"
    try:
        if not wait_for_device(path, _DEVICE_TIMEOUT):
            role.console.line(f"kjump: cannot resume: {path} does not appear; booting as usual")
            role.status.send("not-resumed", reason=f"{path} does not appear")
            return
        if "kjump.noresume" not in role.options:
            with open_at(path, superblock_offset(role.options), writable=True) as target:
                opened = open_for_resume(target)
                role.status.send("resuming", uptime=uptime())
                role.console.line(f"kjump: resuming from {path}")
                _resume(role, target, opened, Report(boot_seconds_cold=uptime()))
    except BaseException as error:  # whatever it is: the machine boots
        why = in_words(error)
    role.console.line(f"kjump: not resumed: {why}; booting as usual")
    role.status.send("not-resumed", reason=why)
    _invalidate(role, path, why)


def _resume(role: Role, target: Target, opened: OpenImage, report: Report) -> None:
    """Bring A back from here if there is room for it, else by way of C; returns only by an error."""
    landing = None if "kjump.nodirect" in role.options else _land_aside(role, opened)
    if landing is None:
        prepare_resume(target, opened, KERNEL.read_bytes(), own_initrd(), clock_accuracy=_RTC_ACCURACY).go(report)
        return
    with landing, failures_noted(target):
        target.write_superblock(opened.superblock.evolve(state=State.ATTEMPTED))
        bring_back(role, target, opened, landing, with_clock(report, _RTC_ACCURACY))


def _land_aside(role: Role, opened: OpenImage) -> Aside | None:
    try:
        around, layout = window_of(opened)
        return Aside(opened.contents, layout, around, role.room)
    except HostError as error:
        role.console.line(f"kjump: by way of a second kernel: {error}")
        if role.room:
            role.room.release()  # C needs memory too
        return None


def _invalidate(role: Role, path: str, why: str) -> None:
    try:
        # Of a file target the superblock is enough, and all that can be relied on if its extent map is damaged.
        offset = superblock_offset(role.options)
        extents = (Range.of_size(offset, SUPERBLOCK_SIZE),) if offset else ()
        with Target(path, writable=True, extents=extents) as target:
            if target.invalidate(f"a boot did not resume it ({why})"):
                role.console.line(f"kjump: the image on {path} is now invalid")
    except BaseException as error:  # whatever it is: the machine boots
        role.console.line(f"kjump: could not invalidate the image on {path}: {in_words(error)}")


def boot_as_usual(role: Role) -> None:
    """Mount the root file system and hand over; HostError says what is not there, or fails."""
    device = role.options.get("root", "")
    if not device:
        raise HostError("no root= on the kernel command line: there is nothing to boot")
    if not wait_for_device(device, _DEVICE_TIMEOUT):
        raise HostError(f"the root device {device} does not appear")
    kind, flags = role.options.get("rootfstype", "ext4"), role.options.get("rootflags", "")
    try:
        mount(device, _ROOT, kind, 0, flags)
    except OSError as error:
        raise HostError(f"the root device {device} cannot be mounted as {kind}: {error.strerror}") from None
    role.status.send("root-mounted", uptime=uptime())
    role.status.close()
    init = role.options.get("init") or "/sbin/init"
    try:
        switch_root(_ROOT, init)
    except OSError as error:
        raise HostError(f"{init} on the root device {device} cannot be started: {error.strerror}") from None
