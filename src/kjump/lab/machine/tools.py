"""The programs of this host that the lab calls, and their Debian packages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable

from kjump.errors import LabError

PACKAGES = {
    "busybox": "busybox-static",
    "e2fsck": "e2fsprogs",
    "mke2fs": "e2fsprogs",
    "setpriv": "util-linux",
}
"""Programs with their Debian packages, except those that build kernels (`kernel_make`), and QEMU (`qemu`)."""

_ADMINISTRATORS = "/usr/sbin:/sbin"
"""Folders with some of these programs that the PATH of ordinary users lacks."""


def find(program: str) -> str | None:
    """Return the path of `program`, or None when it is not installed."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_ADMINISTRATORS}")


def path_of(program: str) -> str:
    """Return the path of a program in PACKAGES; LabError, which names the package, when it is not installed."""
    found = find(program)
    if found is None:
        raise LabError(f"{program} is not installed: apt install {PACKAGES[program]}")
    return found


def missing_packages(programs: Iterable[tuple[str, str]]) -> list[str]:
    """Return the packages of those (program, package) that are not installed, each once, by name."""
    return sorted({package for program, package in programs if find(program) is None})
