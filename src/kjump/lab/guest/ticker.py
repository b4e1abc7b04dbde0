"""A process that counts in a page of its own, and records the counter's value during each pause of the process.

Run in the guest: `python3 -m kjump.lab.guest.ticker start` starts it in the background and prints its page's address;
`pauses` prints the pauses longer than a threshold. The process reads the time stamp counter (TSC) before and after each
step, and so knows the TSC values between which it did not run. During a pause between two steps the page held one known
value; during a pause within a step, the value before or after that step.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from kjump import _core
from kjump.formats.record import JsonObject, Record
from kjump.lab.guest.activity import detach
from kjump.memory import PAGE_SIZE

MAGIC = b"kjumptic"
_FIELDS = struct.Struct("<8sQ")
VALUE_OFFSET = 8
_THRESHOLD = 0.5
_PLACE = Path("/run/ticker.json")
_PAUSES = Path("/run/ticker.pauses")


@dataclass(frozen=True)
class Ticker:
    """The process: its page's (linear) `address` and page `frame`, and how fast the time stamp counter counts (Hz)."""

    pid: int
    address: int
    frame: int
    rate: float

    def to_json(self) -> JsonObject:
        """Return it as a JSON object."""
        return {"pid": self.pid, "address": self.address, "frame": self.frame, "rate": self.rate}

    @classmethod
    def from_json(cls, record: Record) -> Ticker:
        """Read what `to_json` made; FormatError."""
        return cls(
            pid=record.integer("pid", low=1),
            address=record.integer("address"),
            frame=record.integer("frame", low=1),
            rate=record.number("rate", low=1.0),
        )


@dataclass(frozen=True)
class Pause:
    """A time in which the process did not run, from `begun` to `ended` by the time stamp counter.

    `values` are the possible contents of its page meanwhile: one value for a pause between steps, two within a step.
    """

    values: tuple[int, ...]
    begun: int
    ended: int

    def to_json(self) -> JsonObject:
        """Return it as a JSON object."""
        return {"values": list(self.values), "begun": self.begun, "ended": self.ended}

    @classmethod
    def from_json(cls, record: Record) -> Pause:
        """Read what `to_json` made; FormatError."""
        begun = record.integer("begun")
        return cls(record.integers("values", limit=2), begun, record.integer("ended", low=begun))


def start() -> Ticker:
    """Start the process, and return its description."""
    _PLACE.unlink(missing_ok=True)
    if os.fork() == 0:
        detach()
        _tick()
        os._exit(1)
    while not _PLACE.exists():
        time.sleep(0.01)
    return Ticker.from_json(Record.parse(_PLACE.read_text(), str(_PLACE)))


def _tick() -> None:
    page = mmap.mmap(-1, PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _FIELDS.pack_into(page, 0, MAGIC, 0)
    rate = _rate()
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    place = Ticker(os.getpid(), address, frame_of(address), rate)
    partial = _PLACE.with_suffix(".part")
    partial.write_text(json.dumps(place.to_json()))
    partial.replace(_PLACE)
    threshold = int(_THRESHOLD * rate)
    value, last = 0, _core.time_stamp()
    with _PAUSES.open("w") as log:
        while True:
            before = _core.time_stamp()
            if before - last > threshold:
                _note(log, Pause((value,), last, before))
            value += 1
            struct.pack_into("<Q", page, VALUE_OFFSET, value)
            last = _core.time_stamp()
            if last - before > threshold:
                _note(log, Pause((value - 1, value), before, last))
            time.sleep(0.001)


def _note(log: TextIO, pause: Pause) -> None:
    log.write(json.dumps(pause.to_json()) + "\n")
    log.flush()


def _rate() -> float:
    """Return the rate of the time stamp counter in Hz."""
    begun, stamp = time.monotonic(), _core.time_stamp()
    time.sleep(0.3)
    return (_core.time_stamp() - stamp) / (time.monotonic() - begun)


def frame_of(address: int) -> int:
    """Return the page frame number of a linear address of this process."""
    with open("/proc/self/pagemap", "rb") as pagemap:  # noqa: PTH123
        pagemap.seek(address // PAGE_SIZE * 8)
        (entry,) = struct.unpack("<Q", pagemap.read(8))
    return int(entry & ((1 << 55) - 1))


def pauses() -> list[Pause]:
    """Return the pauses that the process recorded."""
    return [Pause.from_json(Record.parse(line, str(_PAUSES))) for line in _PAUSES.read_text().splitlines()]


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(prog="ticker")
    parser.add_argument("what", choices=("start", "pauses"))
    if parser.parse_args().what == "start":
        print(json.dumps(start().to_json()))
    else:
        print(json.dumps({"pauses": [pause.to_json() for pause in pauses()]}))


if __name__ == "__main__":
    main()
