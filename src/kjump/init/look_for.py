"""Where the boot role finds an image: on the device that was named, or on whatever disk carries one."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

from kjump.errors import TargetError
from kjump.formats.superblock import State
from kjump.init.system import Role, find_device, wait_for_device
from kjump.target import identify

TIMEOUT = 5.0
"""Seconds in which a device must appear; `rootdelay=` may say more."""
_PAUSE = 0.1


class NotThereError(TargetError):
    """There is no device with the name, and no image on another one."""


@dataclass(frozen=True)
class Places:
    """Devices with an image; `searched`: found by its signature, for nobody named them."""

    devices: tuple[str, ...]
    searched: bool


def patience(role: Role) -> float:
    """Return for how many seconds to wait for a device; more than usual with `rootdelay=`."""
    said = role.options.get("rootdelay", "")
    return max(TIMEOUT, float(said)) if said.isdecimal() and len(said) < 6 else TIMEOUT


def look_for(role: Role, name: str, states: Collection[State], offset: int) -> Places:
    """Return the device called `name`, or, when there is none, those with an image in one of the `states`.

    Its superblock is to be at byte `offset`. NotThereError when there is neither.
    """
    if name == identify.AUTO:
        found = _search(role, states, offset)
        why = "there is no image on any disk"
    else:
        device, why = _named(role, name)
        if device:
            return Places((device,), searched=False)
        found = identify.with_image(states, offset)
    if not found:
        raise NotThereError(why)
    if name != identify.AUTO:
        role.console.line(f"kjump: {why}, but there is an image on {', '.join(found)}")
    return Places(tuple(found), searched=True)


def _named(role: Role, name: str) -> tuple[str | None, str]:
    try:
        return wait_for_device(name, patience(role)), f"{name} does not appear"
    except TargetError as error:
        return None, str(error)


def _search(role: Role, states: Collection[State], offset: int) -> list[str]:
    """Look at all disks, again and again until the root device is there: a boot without an image does not wait."""
    deadline = time.monotonic() + patience(role)
    while True:
        last = _root_is_there(role) or time.monotonic() > deadline
        found = identify.with_image(states, offset)
        if found or last:
            return found
        time.sleep(_PAUSE)


def _root_is_there(role: Role) -> bool:
    try:
        return bool(find_device(role.options.get("root", "")))
    except TargetError:
        return True
