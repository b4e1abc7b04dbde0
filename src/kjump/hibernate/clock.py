"""One clock for all kernels that take turns on a machine: the CPU's time stamp counter.

A kernel's own clocks stand still while it is parked, and each kernel has its own. The counter runs on through every
jump, so differences of its values measure what happens on both sides. Only a loss of power, or firmware, sets it back.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from kjump import _core
from kjump.formats.record import JsonObject, Record

_LAST_MOMENT = 1e12
"""Seconds since 1970, after which no clock stands."""


@dataclass(frozen=True)
class Moment:
    """A wall clock reading (`wall`, seconds since 1970) taken when the counter stood at `stamp`.

    `accuracy` is how far the reading may be off, in seconds: a clock that was set from the RTC knows whole seconds.
    """

    wall: float
    stamp: int
    accuracy: float = 0.001

    @classmethod
    def now(cls, accuracy: float = 0.001) -> Moment:
        """Read both clocks."""
        return cls(time.time(), _core.time_stamp(), accuracy)

    def to_json(self) -> JsonObject:
        """Return it for a job or a report."""
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
    """How fast the counter runs, measured against the kernel's monotonic clock since this was made."""

    def __init__(self) -> None:
        """Begin to measure."""
        self._time, self._stamp = time.monotonic(), _core.time_stamp()
        self._rate = 0.0

    def measure(self) -> None:
        """Measure now, a good while after the beginning and before a jump: from then on seconds can be told."""
        self._rate = (_core.time_stamp() - self._stamp) / (time.monotonic() - self._time)

    def seconds(self, earlier: int, later: int) -> float:
        """Return the seconds between two values of the counter."""
        return (later - earlier) / self._rate
