"""What runs as PID 1 in the initramfs: the boot, second, resident and restorer roles, told apart by the command line.

Nothing here may raise past `main`: PID 1 that ends is a kernel panic. Every role ends in a jump, a power-off,
a restart, or another init.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kjump.errors import ImageError, KjumpError
from kjump.init import system
from kjump.init.console import Console
from kjump.init.status import Status
from kjump.initramfs.contents import JOB_NAME
from kjump.kexec import syscalls

if TYPE_CHECKING:
    from kjump.host.locked_memory import HugeFile

JOB_PATH = "/" + JOB_NAME
ROLES = {
    "boot": "kjump.init.roles.boot",
    "second": "kjump.init.roles.second",
    "resident": "kjump.init.roles.peer",
    "restorer": "kjump.init.roles.restorer",
}
"""The module of each role, imported only when it is played: imports are a good part of the time to the first job."""


def main() -> None:
    """Run the role that the command line names; never returns."""
    system.mount_kernel_file_systems()
    options = system.kernel_options()
    console = Console()
    name = options.get("kjump.role", "boot")
    status = Status.open(options.get("kjump.status"))
    try:
        status.send("role", name=name, uptime=system.uptime())
        room = _room_ahead(options) if name == "boot" else None
        importlib.import_module(ROLES[name]).run(system.Role(options, _job(), console, status, room))
    except KjumpError as error:
        console.line(f"kjump {name}: {error}")
    except BaseException:
        import traceback

        console.line(f"kjump {name}: unexpected error\n{traceback.format_exc()}")
    _give_up(console)


def _room_ahead(options: dict[str, str]) -> HugeFile | None:
    """Have another CPU zero the memory for an image, if there may be one to resume, while this one imports the role."""
    path = options.get("kjump.resume", "")
    if not path or options.keys() & {"kjump.noresume", "kjump.nodirect", "kjump.rollback"}:
        return None
    from kjump.image.reserved_memory import take_ahead

    try:
        return take_ahead(path, system.superblock_offset(options))
    except ImageError:
        return None  # the role will say why not


def _job() -> dict[str, Any]:
    path = Path(JOB_PATH)
    job: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return job


def _give_up(console: Console) -> None:
    """Nothing is left to do here: restart the machine, so that it boots as usual."""
    console.line("kjump: restarting the machine")
    sys.stdout.flush()
    time.sleep(0.2)
    try:
        syscalls.restart()
    finally:
        os._exit(1)
