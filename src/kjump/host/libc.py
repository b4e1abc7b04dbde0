"""The C library, for the system calls that Python does not have."""

from __future__ import annotations

import contextlib
import ctypes
import functools

_M_ARENA_MAX = -8
"""Source: mallopt(3), and malloc.h of glibc for the number."""


@functools.cache
def libc() -> ctypes.CDLL:
    """Return the C library, with errno kept for `ctypes.get_errno`.

    Opened once: every CDLL makes a class of its own, and what many jumps in one process leave behind adds up.
    """
    return ctypes.CDLL(None, use_errno=True)


def share_one_heap() -> None:
    """Let the threads that start from now on allocate where the first one does.

    Each would have a heap of its own, and what is free at the end of such a one malloc_trim(3) does not give back.
    """
    with contextlib.suppress(AttributeError):  # only glibc has it, and only there is it needed
        libc().mallopt(_M_ARENA_MAX, 1)
