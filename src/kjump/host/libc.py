"""The C library, for system calls that Python has no function for."""

from __future__ import annotations

import contextlib
import ctypes
import functools

_M_ARENA_MAX = -8
"""M_ARENA_MAX of mallopt(3); the number is from glibc's malloc.h."""


@functools.cache
def libc() -> ctypes.CDLL:
    """Return the C library, with errno kept for `ctypes.get_errno`.

    It is opened once, because every CDLL object makes a new class, which a process with many jumps would accumulate.
    """
    return ctypes.CDLL(None, use_errno=True)


def share_one_heap() -> None:
    """Let threads that start after this call allocate from the main heap (arena).

    Otherwise each thread gets an arena of its own, at whose end malloc_trim(3) does not return free memory.
    """
    with contextlib.suppress(AttributeError):  # only glibc has mallopt, and only glibc needs this
        libc().mallopt(_M_ARENA_MAX, 1)
