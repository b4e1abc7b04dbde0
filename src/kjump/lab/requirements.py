"""What a demonstration needs of this host, looked for before anything is made."""

from __future__ import annotations

from importlib.util import find_spec

from kjump.errors import LabError
from kjump.lab.machine import tools

_COMPILER = (("gcc", "gcc"), ("ld", "binutils"))
_PYTHON = {"qemu.qmp": "lab", "unicorn": "emulator"}
"""By Python module: the extra of kjump that installs it."""


def check(*, emulator: bool = False) -> None:
    """Refuse when something is missing that virtual machines need: LabError, which says how to install it.

    With `emulator` an emulated CPU is needed too, and a compiler for the example programs. The source of a kernel is
    looked for by `kernel_source`, once it is known that there is none in the cache.
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
    except ModuleNotFoundError:  # the package that it is in
        return False
