"""One clock for all kernels that take turns on a machine: the CPU's time stamp counter (TSC).

A kernel's own clocks stand still while it is parked, and each kernel has its own. The TSC runs on through every jump,
so differences of its values measure time across both kernels. Only a loss of power, or firmware, resets it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from kjump import _core
from kjump.formats.record import JsonObject, Record

_LAST_MOMENT = 1e12
"""The latest wall clock reading, in seconds since 1970, that is accepted as valid."""


@dataclass(frozen=True)
class Moment:
    """A wall clock reading (`wall`, seconds since 1970) taken when the time stamp counter was at `stamp`.

    `accuracy` is the largest error of the reading, in seconds; it is 1 for a clock that was set from the RTC.
    """

    wall: float
    stamp: int
    accuracy: float = 0.001

    @classmethod
    def now(cls, accuracy: float = 0.001) -> Moment:
        """Read both clocks."""
        return cls(time.time(), _core.time_stamp(), accuracy)

    def to_json(self) -> JsonObject:
        """Return it as JSON for a job or a report."""
        return {"wall": self.wall, "stamp": self.stamp, "accuracy": self.accuracy}

    @classmethod
    def from_json(cls, record: Record) -> Moment:
        """Read what `to_json` gave; FormatError."""
        return cls(
            record.number("wall", low=0, high=_LAST_MOMENT),
            record.integer("stamp"),
            record.number("accuracy", low=0, high=_LAST_MOMENT),
        )


class Pace:
    """The rate of the time stamp counter, measured against the kernel's monotonic clock since this object was made."""

    def __init__(self) -> None:
        """Begin to measure."""
        self._time, self._stamp = time.monotonic(), _core.time_stamp()
        self._rate = 0.0

    def measure(self) -> None:
        """End the measurement; call it before a jump, well after the beginning. Only then can `seconds` be called."""
        self._rate = (_core.time_stamp() - self._stamp) / (time.monotonic() - self._time)

    def seconds(self, earlier: int, later: int) -> float:
        """Return the seconds between two values of the counter."""
        return (later - earlier) / self._rate
