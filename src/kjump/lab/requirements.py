"""Checks for the programs and modules of this host that a demonstration needs."""

from __future__ import annotations

from importlib.util import find_spec

from kjump.errors import LabError
from kjump.lab.machine import tools

_COMPILER = (("gcc", "gcc"), ("ld", "binutils"))
_PYTHON = {"qemu.qmp": "lab", "unicorn": "emulator"}
"""Python modules, each with the extra of kjump that installs it."""


def check(*, emulator: bool = False) -> None:
    """Raise LabError, which says what to install, when something is missing that virtual machines need.

    With `emulator` an emulated CPU is needed too, and a compiler for the example programs. A kernel's source is checked
    by `kernel_source`, and only if the kernel is not in the cache.
    """
    modules = ["qemu.qmp", *(["unicorn"] if emulator else [])]
    extras = sorted(_PYTHON[name] for name in modules if not _is_there(name))
    if extras:
        raise LabError(f"the lab needs Python packages that are not installed: pip install 'kjump[{','.join(extras)}]'")
    from kjump.lab.machine.qemu import QEMU, QEMU_PACKAGE

    programs = [(QEMU, QEMU_PACKAGE), *tools.PACKAGES.items(), *(_COMPILER if emulator else ())]
    if packages := tools.missing_packages(programs):
        raise LabError(f"the lab needs programs that are not installed: apt install {' '.join(packages)}")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that contains the module
        return False
