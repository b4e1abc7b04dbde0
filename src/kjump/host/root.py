"""Where the running kernel's files are: below `/`, or below a folder with a made-up machine's.

Whoever reads /proc, /sys or /dev/mem asks `at` for the path. A test gives a folder that holds such files, and suspend,
preflight and resume then run on that machine. Block devices are another matter: see `kjump.target.disks`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_HERE = Path("/")
_root = _HERE


def at(path: str | Path) -> Path:
    """Return where the file lies that the running kernel calls `path`, which is absolute."""
    return Path(path) if _root is _HERE else _root / str(path).lstrip("/")


@contextlib.contextmanager
def below(folder: Path) -> Iterator[None]:
    """Find the kernel's files below `folder` while the context lasts; for all threads."""
    global _root
    before, _root = _root, folder
    try:
        yield
    finally:
        _root = before
