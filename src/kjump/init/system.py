"""What PID 1 must do by hand: mounts, the kernel's options, physical memory, handing over to another init."""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kjump.errors import HostError, ImageError
from kjump.formats import cmdline
from kjump.formats.superblock import SUPERBLOCK_SIZE
from kjump.host import root
from kjump.host.libc import libc
from kjump.target import disks

if TYPE_CHECKING:
    from kjump.hibernate.jobs import Assignment
    from kjump.host.locked_memory import HugeFile
    from kjump.init.console import Console
    from kjump.init.status import Status
    from kjump.kexec.way_back import WayBack

_MS_MOVE = 8192


@dataclass(frozen=True)
class Role:
    """What every role is given: the kernel's options, the assignment, the console and the status channel.

    `room` is memory for an image that may be resumed, taken ahead; `way_back`, which is open, leads out of a
    second kernel.
    """

    options: dict[str, str]
    assignment: Assignment
    console: Console
    status: Status
    room: HugeFile | None = None
    way_back: WayBack | None = None


def mount(source: str, target: str, kind: str | None, flags: int = 0, data: str = "") -> None:
    """Call mount(2); OSError as it gives it."""
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    if libc().mount(*encoded, ctypes.c_ulong(flags), os.fsencode(data) if data else None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def mount_proc() -> None:
    """Mount /proc, unless it is there already; OSError as mount(2) gives it."""
    _mount_kernel_file_system("proc", "/proc")


def mount_sys_and_dev() -> None:
    """Mount /sys and /dev, unless they are there already; OSError as mount(2) gives it."""
    _mount_kernel_file_system("sysfs", "/sys")
    _mount_kernel_file_system("devtmpfs", "/dev")


def _mount_kernel_file_system(kind: str, where: str) -> None:
    os.makedirs(where, exist_ok=True)  # noqa: PTH103
    if not os.path.ismount(where):
        mount(kind, where, kind)


def kernel_options() -> dict[str, str]:
    """Return the kernel command line as option -> value, as `CommandLine.options` does; no line is an error."""
    return cmdline.parse(root.at("/proc/cmdline").read_text("utf-8", "surrogateescape").removesuffix("\n")).options()


def superblock_offset(options: dict[str, str], name: str = "kjump.resume_offset") -> int:
    """Return the byte at which the superblock is: the option counts blocks of 4096, as the kernel's resume_offset does.

    ImageError when it is not a number.
    """
    text = options.get(name, "0")
    if not text.isdecimal():
        raise ImageError(f"{name}={text} is not a number of blocks")
    return int(text) * SUPERBLOCK_SIZE


def uptime() -> float:
    """Return the seconds since this kernel started."""
    return float(root.at("/proc/uptime").read_text().split()[0])


def switch_root(root: str, init: str) -> None:
    """Make the file system mounted at `root` the root, free the initramfs, and become `init` there."""
    for where in ("/proc", "/sys", "/dev"):
        os.makedirs(root + where, exist_ok=True)  # noqa: PTH103
        mount(where, root + where, None, _MS_MOVE)
    init_path = Path(root, init.lstrip("/"))
    if not init_path.exists() and not init_path.is_symlink():
        raise HostError(f"the root file system has no {init}")
    os.chdir(root)
    _remove_tree("/", os.lstat("/").st_dev)
    mount(".", "/", None, _MS_MOVE)
    os.chroot(".")
    os.chdir("/")
    os.execv(init, [init])


def _remove_tree(path: str, device: int) -> None:
    """Remove what lies below `path` on the same device: memory of the initramfs, given back."""
    with os.scandir(path) as entries:
        for entry in list(entries):
            try:
                if os.lstat(entry.path).st_dev != device:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    _remove_tree(entry.path, device)
                    os.rmdir(entry.path)  # noqa: PTH106
                else:
                    os.unlink(entry.path)  # noqa: PTH108
            except OSError:
                continue


def wait_for_device(name: str, timeout: float) -> str | None:
    """Wait, at most `timeout` seconds, until there is a block device called `name`; return its device file.

    None when none appears; TargetError when `name` is none that can be told here (`kjump.target.identify`).
    """
    deadline = time.monotonic() + timeout
    while True:
        device = find_device(name)
        if device or time.monotonic() > deadline:
            return device
        time.sleep(0.02 if name.startswith("/dev/") else 0.1)


def find_device(name: str) -> str | None:
    """Return the device file of the block device called `name`, if it is there; TargetError as `wait_for_device`."""
    if name.startswith("/dev/") and disks.current().is_there(name):
        return name
    from kjump.target import identify  # most boots do without

    return identify.find(name)
