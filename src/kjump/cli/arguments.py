"""Checks of the files and devices on the command line, made before privileges, kernel and memory are checked.

A wrong argument is thus reported to every user, root or not. Files that only root can read are not checked here: for
other users the next error is that root is needed.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import click

from kjump.errors import FormatError, HostError, TargetError, UsageError
from kjump.formats import bzimage
from kjump.formats.extentmap import BLOCK
from kjump.initramfs.contents import is_initramfs
from kjump.target.device import Target, open_at
from kjump.target.file import FileTarget

_HEAD = 4096


def need_root() -> None:
    """Raise HostError unless this process runs as root."""
    if os.geteuid() != 0:
        raise HostError("only root can do this: run it as root")


def check_target(path: str, *, folder: bool = False) -> None:
    """Raise TargetError unless `path` is a block device, a file or, with `folder`, a folder."""
    mode = _mode(path)
    if mode is None or stat.S_ISBLK(mode) or stat.S_ISREG(mode) or (folder and stat.S_ISDIR(mode)):
        return
    what = "is a folder" if stat.S_ISDIR(mode) else "is not a block device"
    raise TargetError(f"target {path} {what}: give a partition, a disk, or a file of `kjump target create`")


def target_named(context: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    """Return the device file of the device that an option calls by another name (UUID=..., 8:2); paths as they are.

    TargetError when there is none, HostError when only root may look for it.
    """
    from kjump.target import identify

    if name is None or os.path.lexists(name) or not (identify.is_no_path(name) or name.startswith("/dev/disk/")):
        return name
    need_root()
    device = identify.find(name)
    if device is None:
        raise TargetError(f"there is no block device {name}")
    return device


def open_saved(path: str, block: int, *, writable: bool) -> Target:
    """Open the target of an image: a target file, a device, or the target file that begins at `block` of a device.

    `block` is in units of 4096 bytes, as kjump.resume_offset= counts; 0 for the device itself. TargetError or
    ImageError when there is none.
    """
    if check_saved(path, block):
        return FileTarget(path)
    return open_at(path, block * BLOCK, writable=writable)


def check_saved(path: str, block: int) -> bool:
    """Raise TargetError or UsageError when `open_saved` cannot open the path; tell whether it is a file."""
    check_target(path)
    mode = _mode(path)
    is_file = mode is not None and stat.S_ISREG(mode)
    if is_file and block:
        raise UsageError(f"{path} is a file: --offset says where a target file begins on a device")
    return is_file


def check_second_kernel(kernel: Path | None, *initrds: Path | None) -> None:
    """Raise FormatError when `kernel` is no bzImage, or one of `initrds` is no initramfs."""
    if kernel is not None and (head := _head(kernel)):
        try:
            bzimage.check_magic(head)
        except FormatError as error:
            raise FormatError(f"{kernel} cannot be the kernel: {error}") from None
    for initrd in filter(None, initrds):
        head = _head(initrd)
        if head and not is_initramfs(head):
            raise FormatError(f"{initrd} cannot be an initramfs: it is neither a cpio archive nor a compressed one")


def _mode(path: str) -> int | None:
    """Return the file mode of `path`; None when this user may not read it. TargetError when it does not exist."""
    try:
        return Path(path).stat().st_mode
    except PermissionError:
        return None
    except OSError as error:
        raise TargetError(f"target {path} cannot be opened: {error.strerror}") from None


def _head(path: Path) -> bytes:
    """Return the first bytes of a file; empty when this user may not read it."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD) or bytes(1)
    except PermissionError:
        return b""
