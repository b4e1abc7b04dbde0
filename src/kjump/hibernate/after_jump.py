"""After a jump: reseed the first kernel's random number generator, and set its wall clock.

The kernel does not reseed the generator at a jump, and sets its clock to whole seconds only.

Random numbers: the generator's state is in the image. A reader of the image could predict the generator's output, and
two runs of one image (a snapshot that was rolled back to) would get the same numbers. The other kernel therefore leaves
32 bytes from its own generator in the mailbox. They are credited to the entropy pool (RNDADDENTROPY), from which the
generator takes a new key at once (RNDRESEEDCRNG), with the CPU's RDSEED where there is one. Programs that have a
generator of their own are not notified.

The wall clock: after a jump the kernel advances it by the RTC's difference, in whole seconds. More accurate are the
reading taken before the jump plus the time stamp counter's difference or, when this system was restored from an image,
the clock of the system that started the restoration.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time

from kjump import _core
from kjump.hibernate.clock import Moment, Pace
from kjump.hibernate.report import Report
from kjump.host import root

SEED_SIZE = 32
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207


def fresh_seed(other: bytes = b"") -> bytes:
    """Return 32 bytes of this kernel's random number generator, mixed with the seed `other`."""
    import hashlib  # not needed before the jump, and slow to load

    return hashlib.sha256(other + os.getrandom(SEED_SIZE)).digest()


def mend(report: Report, left: Moment, pace: Pace) -> float:
    """Reseed the generator and set the wall clock with what the other kernel left in `report`.

    `left` is the moment of the jump. Returns the step of the wall clock in seconds. Errors of either step are ignored.
    """
    with contextlib.suppress(OSError, ValueError):
        reseed(report.seed)
    known = report.clock or left
    with contextlib.suppress(OSError):
        return set_clock(known, pace)
    return 0.0


def reseed(seed: bytes) -> None:
    """Add `seed` to the kernel's random pool as entropy, and have the generator take a new key; OSError if refused."""
    fd = os.open(root.at("/dev/urandom"), os.O_WRONLY | os.O_CLOEXEC)
    try:
        if seed:
            fcntl.ioctl(fd, _RNDADDENTROPY, struct.pack("=ii", len(seed) * 8, len(seed)) + seed)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    finally:
        os.close(fd)


def set_clock(known: Moment, pace: Pace) -> float:
    """Set the wall clock by `known` if it differs by more than `known.accuracy`; return the step in seconds."""
    now = known.wall + pace.seconds(known.stamp, _core.time_stamp())
    step = now - time.time()
    if abs(step) <= known.accuracy or now < known.wall:
        return 0.0
    time.clock_settime(time.CLOCK_REALTIME, now)
    return round(step, 6)
