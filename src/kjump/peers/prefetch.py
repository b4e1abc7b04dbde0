"""Unpacks a kernel on standby from disk on idle CPUs while a hibernation begins.

Python imports the modules of a hibernation on one CPU; that takes longer than unpacking the kernel on another.
"""

from __future__ import annotations

import os
from pathlib import Path

from kjump.errors import HostError
from kjump.host import procfs
from kjump.peers import FOLDER
from kjump.peers.on_disk import Unpacking
from kjump.peers.registry import Ledger

_SPARE = 64 << 20
"""The bytes of memory that must stay available: more than `preflight.has_room` requires, which is not called then."""


def unpack_ahead(folder: Path = FOLDER) -> Unpacking | None:
    """Begin to unpack the peers that are on disk; None when there are none, or too little memory is available.

    The record of the peers is read without its lock: `Stored.plan` later checks that the same peers were unpacked.
    """
    try:
        state = Ledger(folder).read()
    except (HostError, OSError):
        return None  # the caller reads the record again, with the lock, and reports the error
    stored = state.stored if state else None
    if stored is None or procfs.meminfo()["MemAvailable"] < stored.memory + stored.size + _SPARE:
        return None
    return Unpacking(stored, threads=max(1, (os.cpu_count() or 1) - 1))
