"""Files that are written whole, also into folders that belong to others, such as /tmp.

Whoever may write to such a folder can put a link, or a file that is open elsewhere, where one of ours is about to be.
So a file is made under a name that nobody has yet (O_EXCL, O_NOFOLLOW), written through that one descriptor, and given
its name when it is whole: what had the name before, a link too, is replaced and never written to.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from kjump.errors import HostError

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def write_whole(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Let the file `path` have the contents `data`, with `mode` less the umask; HostError when that cannot be done.

    What is no file (a pipe, a terminal, /dev/stdout) is written to, if it is ours or root's. A failure leaves what was
    there before.
    """
    try:
        if _is_stream(path):
            _write_to_stream(path, data)
        else:
            _write_file(path, data, mode)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from None


def read_own(path: Path) -> bytes | None:
    """Return the contents of a file that only we can have written; None when there is none, or others could."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if not (is_private(fd) and stat.S_ISREG(os.fstat(fd).st_mode)):
        os.close(fd)
        return None
    with open(fd, "rb") as file:  # noqa: PTH123
        return file.read()


def is_private(fd: int) -> bool:
    """Tell whether what is open as `fd` belongs to us, and nobody else may write to it."""
    found = os.fstat(fd)
    return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_stream(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode)


def _write_to_stream(path: Path, data: bytes) -> None:
    if path.lstat().st_uid not in (0, os.geteuid()):
        raise HostError(f"{path} is no file, and belongs to somebody else: name another")
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    with open(fd, "wb") as file:  # noqa: PTH123
        file.write(data)


def _write_file(path: Path, data: bytes, mode: int) -> None:
    partial = path.with_name(f".{path.name}.{os.urandom(6).hex()}.part")
    fd = os.open(partial, _NEW, mode)
    try:
        with open(fd, "wb") as file:  # noqa: PTH123
            file.write(data)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
