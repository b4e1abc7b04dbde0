"""What runs as PID 1 in the initramfs: the boot, second, resident and restorer roles, told apart by the command line.

Nothing here may raise past `main`: PID 1 that ends is a kernel panic. Every role ends in a jump, a
power-off, a restart, another init, or, when there is nothing to boot, a halt; a second kernel's failures end in the
jump back to the first.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from typing import TYPE_CHECKING

from kjump.errors import HostError, KjumpError, UsageError
from kjump.host import root
from kjump.init import system
from kjump.init.console import Console
from kjump.init.status import Status
from kjump.initramfs.contents import JOB_NAME
from kjump.kexec import loader
from kjump.kexec.way_back import WayBack

if TYPE_CHECKING:
    from kjump.hibernate.jobs import Assignment
    from kjump.host.locked_memory import HugeFile

JOB_PATH = "/" + JOB_NAME
ROLES = {
    "boot": "kjump.init.roles.boot",
    "second": "kjump.init.roles.second",
    "resident": "kjump.init.roles.peer",
    "restorer": "kjump.init.roles.restorer",
}
"""The module of each role, imported only when it is played: imports are a good part of the time to the first job."""
_STARTED_BY_KJUMP = ("second", "resident", "restorer")
"""The roles that a restart ends: what comes then is the boot loader's, an ordinary boot."""
_COUNTDOWN = 30
"""Seconds in which what went wrong can be read, and the machine restarted by hand."""


def main() -> None:
    """Run the role that the command line names; never returns.

    A second kernel opens the way back to the first before anything else, and goes there whatever happens then.
    """
    console = Console()
    name, way = "init", None
    try:
        system.mount_proc()
        way = WayBack.on_command_line(root.at("/proc/cmdline").read_text(errors="replace"))
        if way:
            _open(way)
        system.mount_sys_and_dev()
        options = system.kernel_options()
        name = options.get("kjump.role", "boot")
        _play(name, options, console, way)
        error: BaseException = HostError("there is nothing left to do")
    except BaseException as raised:
        error = raised
        _tell(console, name, error)
    if way:
        _go_back(way, error, console)
    if way or name in _STARTED_BY_KJUMP:
        _restart(console)
    else:
        _halt(console)


def _play(name: str, options: dict[str, str], console: Console, way: WayBack | None) -> None:
    """Play the role called `name`; returns when there is nothing left to do for it."""
    if name not in ROLES:
        raise UsageError(f"there is no role called {name} (kjump.role=); there are {', '.join(ROLES)}")
    status = Status.open(options.get("kjump.status"))
    status.send("role", name=name, uptime=system.uptime())
    room = _room_ahead(options) if name == "boot" else None
    importlib.import_module(ROLES[name]).run(system.Role(options, _assignment(), console, status, room, way))


def _tell(console: Console, name: str, error: BaseException) -> None:
    """Say on the console what went wrong, if there is one."""
    import traceback

    text = str(error)
    if not isinstance(error, KjumpError):
        text = "unexpected error\n" + "".join(traceback.format_exception(error))
    with contextlib.suppress(Exception):
        console.line(f"kjump {name}: {text}")


def _open(way: WayBack) -> None:
    from kjump.init import leave

    leave.open_way(way)


def _go_back(way: WayBack, error: BaseException, console: Console) -> None:
    """Go back to A because of `error`; does not return but when no way is open to it.

    When the kernel refuses to leave in an orderly way it is made to panic, which leads to A by the crash slot.
    """
    from kjump.init import leave

    with contextlib.suppress(Exception):
        console.line("kjump: going back to the first system")
    leave.take(way, error)
    with contextlib.suppress(Exception):
        if loader.current().is_loaded(on_crash=True):
            console.line("kjump: this kernel does not leave: a panic leads back to the first system")
            os._exit(1)


def _room_ahead(options: dict[str, str]) -> HugeFile | None:
    """Have another CPU zero the memory for an image, if there may be one to resume, while this one imports the role."""
    path = options.get("kjump.resume", "")
    if not path or options.keys() & {"kjump.noresume", "kjump.nodirect", "kjump.rollback"}:
        return None
    from kjump.image.reserved_memory import take_ahead

    try:
        device = system.find_device(path)  # that of `auto`, or one that is not there yet, is found by the role
        return take_ahead(device, system.superblock_offset(options)) if device else None
    except BaseException:
        return None  # the role will say why not, or do without


def _assignment() -> Assignment:
    """Return what came with the initramfs to be done, no job when nothing did; FormatError when it is damaged."""
    from kjump.hibernate.jobs import Assignment

    path = root.at(JOB_PATH)
    return Assignment.decode(path.read_bytes(), f"the job in the initramfs ({path})") if path.exists() else Assignment()


def _halt(console: Console) -> None:
    """Nothing can be booted here, and it would be no other at the next boot: stop the machine with what was said."""
    try:
        with contextlib.suppress(Exception):
            for left in range(_COUNTDOWN, 0, -10):
                console.line(f"kjump: this machine halts in {left} s (Ctrl-Alt-Del restarts it)")
                time.sleep(10)
            console.line("kjump: halted")
        loader.current().halt()
    finally:
        os._exit(1)


def _restart(console: Console) -> None:
    """Nothing is left to do here: restart the machine, so that it boots as usual."""
    try:
        with contextlib.suppress(Exception):
            console.line("kjump: restarting the machine")
        time.sleep(0.2)
        loader.current().restart()
    finally:
        os._exit(1)
