"""The C library, for the system calls that Python does not have."""

from __future__ import annotations

import ctypes
import functools


@functools.cache
def libc() -> ctypes.CDLL:
    """Return the C library, with errno kept for `ctypes.get_errno`.

    Opened once: every CDLL makes a class of its own, and what many jumps in one process leave behind adds up.
    """
    return ctypes.CDLL(None, use_errno=True)
