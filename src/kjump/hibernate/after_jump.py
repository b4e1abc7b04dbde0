"""What A must mend when it is back: its random numbers and its wall clock. The kernel does neither at a jump.

Random numbers: the generator's state is in the image, so whoever reads the image could foretell what it gives, and
two runs of one image (a snapshot that was rolled back to) would be given the same numbers. The other side leaves
32 bytes of its own generator in the mailbox; they are credited to the pool (RNDADDENTROPY), and the generator takes a
new key from it at once (RNDRESEEDCRNG), with the CPU's RDSEED where there is one. Programs with a generator of their
own are not told.

The wall clock: after a jump the kernel adds the seconds that the RTC counted, whole ones. We know better: the reading
taken before the jump and the time stamp counter, which ran on; or, when this system was brought back from an image,
the clock of the system that started its restoration.
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
    """Return 32 bytes of this kernel's generator, mixed with the seed `other`."""
    import hashlib  # not needed before the jump, and slow to load

    return hashlib.sha256(other + os.getrandom(SEED_SIZE)).digest()


def mend(report: Report, left: Moment, pace: Pace) -> float:
    """Mend generator and clock, with what the other side left in `report`.

    `left` is the moment of the jump. Returns by how many seconds the wall clock was set forward. What this system
    refuses is left as it is.
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
    """Set the wall clock to what `known` says of now, if it is off by more than that is accurate; return the step."""
    now = known.wall + pace.seconds(known.stamp, _core.time_stamp())
    step = now - time.time()
    if abs(step) <= known.accuracy or now < known.wall:
        return 0.0
    time.clock_settime(time.CLOCK_REALTIME, now)
    return round(step, 6)
