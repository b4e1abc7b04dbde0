"""Files that are written atomically, also in folders that other users may write to, such as /tmp.

In such a folder another user can put a link, or a file that is open elsewhere, at the name of a new file. A file is
therefore created under a new name (O_EXCL, O_NOFOLLOW), written through that descriptor, and renamed when it is
complete: a file or link that had the name before is replaced, and never written to.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from kjump.errors import HostError

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def write_whole(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write `data` to the file `path`, with `mode` less the umask; HostError when that fails.

    A pipe, a terminal or /dev/stdout is written to directly, if it belongs to this user or root. A failure leaves the
    old file unchanged.
    """
    try:
        if _is_stream(path):
            _write_to_stream(path, data)
        else:
            _write_file(path, data, mode)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from None


def read_own(path: Path) -> bytes | None:
    """Return the contents of a file that only this user can have written; None when there is no such file."""
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
    """Tell whether the open file `fd` belongs to this user, and no other user may write to it."""
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
        raise HostError(f"{path} is no regular file, and belongs to another user: name another path")
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
