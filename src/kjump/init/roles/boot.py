"""The boot role: resume from a valid image if there is one, else mount the root file system and hand over.

What fits into memory beside this kernel is read by it, and put in place by the gate; for more it boots C, which is
confined to B's window. `kjump.nodirect` takes that way in any case.

A boot that does not resume invalidates a complete image before it mounts anything: what the image remembers
of the disks is no longer true from then on. A snapshot is another matter: it is meant to be gone back to later, by
`kjump rollback`, or by a boot that is told so with kjump.rollback=; boots leave it as it is.

Images have signatures. So the option's device only narrows the choice: with `auto`, or when no device has that name,
each disk is looked at. Of the images found so, those that are good for this machine alone are touched.
"""

from __future__ import annotations

import contextlib

from kjump.errors import HostError, ImageError, TargetError, in_words
from kjump.formats.superblock import SUPERBLOCK_SIZE, State
from kjump.hibernate.report import Report
from kjump.hibernate.resume import (
    OtherMachineError,
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
from kjump.init.look_for import NotThereError, look_for
from kjump.init.roles import mount_root
from kjump.init.system import Role, superblock_offset, uptime
from kjump.initramfs.contents import KERNEL, own_initrd
from kjump.ranges import Range
from kjump.target.device import Target, open_at

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
    mount_root.boot_as_usual(role)


def _try_to_roll_back(role: Role, name: str) -> None:
    """Jump into C if the snapshot on `name` is good; say in one sentence why not, and leave it as it is."""
    try:
        offset = superblock_offset(role.options, "kjump.rollback_offset")
        places = look_for(role, name, (State.SNAPSHOT,), offset)
        if len(places.devices) > 1:
            raise TargetError(f"there are snapshots on {', '.join(places.devices)}: name one of them")
        (path,) = places.devices
        with open_at(path, offset, writable=True) as target:
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


def _try_to_resume(role: Role, name: str) -> None:
    """Jump into C if there is a good image on `name`; say in one sentence why not, and make it unusable."""
    try:
        places = look_for(role, name, (State.COMPLETE, State.ATTEMPTED), _offset_or_none(role))
    except NotThereError as error:
        role.console.line(f"kjump: cannot resume: {error}; booting as usual")
        role.status.send("not-resumed", reason=str(error))
        return
    except BaseException as error:  # whatever it is: the machine boots
        _give_up(role, name, in_words(error), keep=False)
        return
    for path in places.devices:
        why, of_another_machine = _try_one(role, path, look=places.searched)
        _give_up(role, path, why, keep=places.searched and of_another_machine)


def _offset_or_none(role: Role) -> int:
    """Return where superblocks are; 0 when the option is wrong, which is said when it is used."""
    try:
        return superblock_offset(role.options)
    except ImageError:
        return 0


def _try_one(role: Role, path: str, *, look: bool) -> tuple[str, bool]:
    """Resume from `path`, or return why not, and whether that is because the image is another machine's.

    A boot that is told not to resume looks (`look`) only whose image it is.
    """
    told_not_to = "kjump.noresume" in role.options
    why = "the boot was told not to resume"
    if told_not_to and not look:
        return why, False
    try:
        with open_at(path, superblock_offset(role.options), writable=True) as target:
            opened = open_for_resume(target)
            if told_not_to:
                return why, False
            role.status.send("resuming", uptime=uptime())
            role.console.line(f"kjump: resuming from {path}")
            _resume(role, target, opened, Report(boot_seconds_cold=uptime()))
    except OtherMachineError as error:
        return str(error), True
    except BaseException as error:  # whatever it is: the machine boots
        why = why if told_not_to else in_words(error)
    return why, False


def _give_up(role: Role, path: str, why: str, *, keep: bool) -> None:
    """Say why the image on `path` is not resumed, and make it unusable; `keep`: it is left to whom it belongs."""
    role.console.line(f"kjump: not resumed: {why}; booting as usual")
    role.status.send("not-resumed", reason=why)
    if keep:
        role.console.line(f"kjump: the image on {path} is left as it is: nobody named it")
    else:
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
