"""A kernel of the lab: a folder with its files.

    <cache root>/kernels/<name>/   bzImage, config, kernel.json [, vmlinux]

`kernel.json` has the facts that are not in the other files. A folder gets its name by a rename when it is complete, so
an existing folder can be used. `kernel_source` builds kernels from source. A kernel has no modules; all its drivers are
built in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from kjump.errors import FormatError, LabError
from kjump.formats.record import JsonObject, Record
from kjump.lab.machine.cache import cache_root

_DESCRIPTION = "kernel.json"


@dataclass(frozen=True)
class LabKernel:
    """A kernel in the cache, ready to boot.

    `version` is the version that callers ask for ("6.12"), `release` the kernel's release (`uname -r`). `vmlinux` has
    debugging information, for crash and drgn; None when that was not asked for.
    """

    version: str
    release: str
    arch: str
    image: Path
    config: Path
    vmlinux: Path | None

    def to_json(self) -> JsonObject:
        """Return the contents of kernel.json."""
        return {"version": self.version, "release": self.release, "arch": self.arch}

    @classmethod
    def from_json(cls, record: Record, folder: Path) -> LabKernel:
        """Return the kernel in `folder` that kernel.json describes; FormatError when a field is wrong."""
        vmlinux = folder / "vmlinux"
        return cls(
            version=record.text("version"),
            release=record.text("release"),
            arch=record.text("arch"),
            image=folder / "bzImage",
            config=folder / "config",
            vmlinux=vmlinux if vmlinux.exists() else None,
        )


def kernels_folder(cache: Path | None = None) -> Path:
    """Return the folder of all kernels in `cache` (default: the user's cache)."""
    return (cache or cache_root()) / "kernels"


def describe(folder: Path, kernel: LabKernel) -> None:
    """Write kernel.json to the `folder` of `kernel`."""
    (folder / _DESCRIPTION).write_text(json.dumps(kernel.to_json(), indent=2) + "\n", "utf-8")


def load(folder: Path) -> LabKernel | None:
    """Return the kernel in a folder of the cache, or None when there is none; LabError when it is damaged."""
    path = folder / _DESCRIPTION
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return None
    try:
        return LabKernel.from_json(Record.parse(text, str(path)), folder)
    except FormatError as error:
        raise LabError(f"{error}: remove that folder and build the kernel again") from None
