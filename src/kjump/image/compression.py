"""Which zstd level an image is written with, found by measuring: some of A's pages at each level, and the target.

Compressing and writing overlap, so the slower of them decides; of levels that take nearly the same time the one
with the smallest image is taken.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

from kjump import _core
from kjump.image.headers import Span, Spans
from kjump.target.device import Target

AUTO = 0
"""Stands for the level that is found by measuring; zstd itself takes 0 for its usual level, which is 3."""
LEVELS = (3, 1, -2, -5)
_PIECE = 256 << 10
_PIECES = 16
_BLOCK = 4096
_TEST_WRITE = 4 << 20
_NEARLY = 1.1


@dataclass(frozen=True)
class Trial:
    """What a level did to the sample: bytes a second on one CPU, and the share of the bytes that is left."""

    level: int
    speed: float
    ratio: float


def choose(trials: Iterable[Trial], *, threads: int, write_speed: float) -> int:
    """Return the level to take on `threads` CPUs and a target that takes `write_speed` bytes a second."""
    seconds = {t: max(1 / (t.speed * threads), t.ratio / write_speed) for t in trials}
    best = min(seconds.values())
    return min((t for t in seconds if seconds[t] <= best * _NEARLY), key=lambda t: t.ratio).level


def measure(fd: int, spans: Spans, target: Target, offset: int, *, threads: int) -> int:
    """Return the level to take for `spans` of the file `fd` (/proc/vmcore), written on `threads` CPUs.

    The target is overwritten from byte `offset` on, where the image will stand. TargetError when that fails.
    """
    data = sample(fd, spans)
    if not data:
        return 1
    trials = [_try(data, level) for level in LEVELS]
    return choose(trials, threads=threads, write_speed=_write_speed(target, offset))


def sample(fd: int, spans: Iterable[Span]) -> bytes:
    """Return up to 4 MiB of what `spans` hold, from places spread evenly over them."""
    total = sum(length for _, _, length in spans)
    wanted = [total * i // _PIECES for i in range(_PIECES)]
    pieces, before = [], 0
    for _, offset, length in spans:
        while wanted and wanted[0] < before + length:
            inside = wanted.pop(0) - before
            pieces.append(os.pread(fd, min(_PIECE, length - inside), offset + inside))
        before += length
    return b"".join(pieces)


def _try(data: bytes, level: int) -> Trial:
    begun = time.monotonic()
    compressed = _core.compress_bytes(data, level)
    seconds = max(time.monotonic() - begun, 1e-6)
    return Trial(level, len(data) / seconds, len(compressed) / len(data))


def _write_speed(target: Target, offset: int) -> float:
    """Return bytes a second of writing zeros from byte `offset` of `target` on; of no room at all, any."""
    size = max(0, min(_TEST_WRITE, target.capacity - offset)) // _BLOCK * _BLOCK
    begun = time.monotonic()
    if size:
        target.write(offset, bytes(size))
    return max(size, 1) / max(time.monotonic() - begun, 1e-6)
