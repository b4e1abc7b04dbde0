"""A process that counts in a page of its own, and knows what it had counted to whenever it stood still.

Run in the guest: `python3 -m kjump.lab.guest.ticker start` leaves it behind and prints where its page is; `pauses`
prints the times it stood still for longer than a threshold, as far as it saw them. It reads the time stamp counter
before and after each step, so it can tell between which two values of the counter it stood still. When that was between
steps, it knows exactly what its page held meanwhile (`sure`); within a step, it was the value before or after.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import struct
import time
from pathlib import Path
from typing import Any

from kjump import _core
from kjump.memory import PAGE_SIZE

MAGIC = b"kjumptic"
_FIELDS = struct.Struct("<8sQ")
VALUE_OFFSET = 8
_THRESHOLD = 0.5
_PLACE = Path("/run/ticker.json")
_PAUSES = Path("/run/ticker.pauses")


def start() -> dict[str, Any]:
    """Start the process; return its {"pid", "address", "frame", "rate"}: page, page frame, counter ticks a second."""
    _PLACE.unlink(missing_ok=True)
    if os.fork() == 0:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        _tick()
        os._exit(1)
    while not _PLACE.exists():
        time.sleep(0.01)
    place: dict[str, Any] = json.loads(_PLACE.read_text())
    return place


def _tick() -> None:
    page = mmap.mmap(-1, PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _FIELDS.pack_into(page, 0, MAGIC, 0)
    rate = _rate()
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    place = {"pid": os.getpid(), "address": address, "frame": frame_of(address), "rate": rate}
    partial = _PLACE.with_suffix(".part")
    partial.write_text(json.dumps(place))
    partial.replace(_PLACE)
    threshold = int(_THRESHOLD * rate)
    value, last = 0, _core.time_stamp()
    with _PAUSES.open("w") as log:
        while True:
            before = _core.time_stamp()
            if before - last > threshold:
                _note(log, [value], last, before)
            value += 1
            struct.pack_into("<Q", page, VALUE_OFFSET, value)
            last = _core.time_stamp()
            if last - before > threshold:
                _note(log, [value - 1, value], before, last)
            time.sleep(0.001)


def _note(log: Any, values: list[int], begun: int, ended: int) -> None:
    log.write(json.dumps({"values": values, "sure": len(values) == 1, "begun": begun, "ended": ended}) + "\n")
    log.flush()


def _rate() -> float:
    """Return how many ticks the time stamp counter makes in a second."""
    begun, stamp = time.monotonic(), _core.time_stamp()
    time.sleep(0.3)
    return (_core.time_stamp() - stamp) / (time.monotonic() - begun)


def frame_of(address: int) -> int:
    """Return the page frame number behind an address of this process."""
    with open("/proc/self/pagemap", "rb") as pagemap:  # noqa: PTH123
        pagemap.seek(address // PAGE_SIZE * 8)
        (entry,) = struct.unpack("<Q", pagemap.read(8))
    return int(entry & ((1 << 55) - 1))


def pauses() -> list[dict[str, Any]]:
    """Return when the process stood still: {"values", "sure", "begun", "ended"}, the latter two counter values."""
    return [json.loads(line) for line in _PAUSES.read_text().splitlines()]


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(prog="ticker")
    parser.add_argument("what", choices=("start", "pauses"))
    print(json.dumps(start() if parser.parse_args().what == "start" else pauses()))


if __name__ == "__main__":
    main()
