"""A kernel that waits on disk, unpacked while other CPUs have nothing to do.

Python imports what a hibernation needs on one CPU, for longer than it takes to unpack the kernel on another.
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
"""Bytes of memory that must be left: more than `preflight.has_room` asks for, which is not asked then."""


def unpack_ahead(folder: Path = FOLDER) -> Unpacking | None:
    """Begin to unpack the peers that are on disk; None when there are none, or memory is short.

    Nothing is locked: whoever loads them compares what was unpacked with what is to be loaded.
    """
    try:
        state = Ledger(folder).read()
    except (HostError, OSError):
        return None  # and whoever looks closer will say why
    stored = state.stored if state else None
    if stored is None or procfs.meminfo()["MemAvailable"] < stored.memory + stored.size + _SPARE:
        return None
    return Unpacking(stored, threads=max(1, (os.cpu_count() or 1) - 1))
