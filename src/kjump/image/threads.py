"""How many threads compress or decompress an image: as many as there are CPUs, unless memory is for fewer.

What a thread takes was measured (RssAnon, frames of 1 MiB, pages that do not compress): 2.4 to 3.6 MiB at the levels -5
to 1, 4.3 at 3, 20 at 9 to 19 when it compresses, 1.4 to 2.4 when it decompresses. `_core.pyi` says of what.
"""

from __future__ import annotations

from kjump.host import procfs
from kjump.image.headers import FRAME_SIZE

MOST = 256
"""The native core takes no more (MAX_THREADS in src/core/core.h)."""
RESTORE_SPARE = 2
"""So many threads more than it is told the native core starts to decompress."""

_FRAMES = 3
"""Two slots of the ring and what is being compressed; or a frame, and up to two megabytes that are read at once."""
_TABLES = 1 << 20
"""Page tables of what a thread maps, its stack."""
_SHARE = 4
"""A quarter of what is available is left to everybody else."""


def compressor_size(level: int) -> int:
    """Return an upper bound in bytes for what zstd takes at `level` for a frame beside the frame itself."""
    return 1 << 20 if level <= 1 else 2 << 20 if level <= 3 else 20 << 20


def threads_for(cpus: int, available: int, frame_size: int = FRAME_SIZE, *, level: int = 1) -> int:
    """Return how many threads to take on `cpus` CPUs with `available` bytes of memory; never less than 1.

    `frame_size` is what one of them works at, in bytes; `level` zstd's, when they compress.
    """
    each = _FRAMES * frame_size + compressor_size(level) + _TABLES
    return max(1, min(cpus, MOST, available * (_SHARE - 1) // _SHARE // each))


def threads_to_save(wanted: int, level: int) -> int:
    """Return how many of the `wanted` threads that compress this machine has memory for now."""
    return threads_for(wanted, procfs.meminfo()["MemAvailable"], level=level)


def threads_to_restore(wanted: int) -> int:
    """Return how many of the `wanted` threads that decompress this machine has memory for now, less the spare ones."""
    found = threads_for(wanted + RESTORE_SPARE, procfs.meminfo()["MemAvailable"])
    return max(1, found - RESTORE_SPARE)
