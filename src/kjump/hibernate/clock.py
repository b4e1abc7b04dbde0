"""One clock for all kernels that take turns on a machine: the CPU's time stamp counter.

A kernel's own clocks stand still while it is parked, and each kernel has its own. The counter runs on through every
jump, so differences of its values measure what happens on both sides. Only a loss of power, or firmware, sets it back.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from kjump import _core


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

    def as_json(self) -> dict[str, Any]:
        """Return it for a job or a report."""
        return vars(self).copy()

    @classmethod
    def of_json(cls, value: Any) -> Moment | None:
        """Return what `as_json` gave, or None when `value` is not that."""
        try:
            return cls(float(value["wall"]), int(value["stamp"]), float(value["accuracy"]))
        except (KeyError, TypeError, ValueError):
            return None


class Pace:
    """How fast the counter runs, measured against the kernel's monotonic clock since this was made."""

    def __init__(self) -> None:
        """Begin to measure."""
        self._time, self._stamp = time.monotonic(), _core.time_stamp()
        self._rate = 0.0

    def settle(self) -> None:
        """Measure now, a good while after the beginning and before a jump: from then on seconds can be told."""
        self._rate = (_core.time_stamp() - self._stamp) / (time.monotonic() - self._time)

    def seconds(self, earlier: int, later: int) -> float:
        """Return the seconds between two values of the counter."""
        return (later - earlier) / self._rate
