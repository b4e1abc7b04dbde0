"""Where the running kernel's files are: below `/`, or below a folder with those of a simulated machine.

Code that reads /proc, /sys or /dev/mem gets the path from `at`. A test supplies a folder with such files, so that
suspend, preflight and resume run on a simulated machine. Block devices are simulated by `kjump.target.disks`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_HERE = Path("/")
_root = _HERE


def at(path: str | Path) -> Path:
    """Return the path of the kernel's file `path`, which must be absolute (/proc/..., /sys/..., /dev/...)."""
    return Path(path) if _root is _HERE else _root / str(path).lstrip("/")


@contextlib.contextmanager
def below(folder: Path) -> Iterator[None]:
    """Use the kernel's files below `folder`, in all threads, while the context lasts."""
    global _root
    before, _root = _root, folder
    try:
        yield
    finally:
        _root = before
