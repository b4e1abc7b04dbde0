"""Makes many timed switches from one process in the guest, each with a message that must come back unchanged.

Run in the guest: `python3 -m kjump.lab.guest.switch_rounds PEERS ROUNDS [--memory]`; prints `SwitchRounds` as JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import mmap
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kjump.formats.record import JsonObject, Record
from kjump.peers.lifecycle import Order, Peers

_RDTSC = bytes.fromhex("0f3148c1e2204809d0c3")  # rdtsc; shl $32, %rdx; or %rdx, %rax; ret
_MESSAGE_SIZE = 4096


@dataclass(frozen=True)
class SwitchRounds:
    """The result of many switches: for each the microseconds there and back, and free memory after it (bytes).

    `free` is empty when it was not asked for; `wrong` is the number of messages that came back changed; `switches` is
    the number of switches to each peer since it was booted.
    """

    microseconds: tuple[int, ...]
    free: tuple[int, ...]
    wrong: int
    switches: dict[str, int]

    @property
    def seconds(self) -> list[float]:
        """The seconds of each switch, to a tenth of a millisecond."""
        return [round(each / 1e6, 4) for each in self.microseconds]

    def to_json(self) -> JsonObject:
        """Return it as a JSON object."""
        return {
            "microseconds": list(self.microseconds),
            "free": list(self.free),
            "wrong": self.wrong,
            "switches": dict(self.switches),
        }

    @classmethod
    def from_json(cls, record: Record) -> SwitchRounds:
        """Read what `to_json` made; FormatError."""
        switches = record.record("switches")
        return cls(
            microseconds=record.integers("microseconds"),
            free=record.integers("free"),
            wrong=record.integer("wrong"),
            switches={name: switches.integer(name) for name in switches.names()},
        )


def time_stamps() -> Callable[[], int]:
    """Return a function that reads the time stamp counter: the kernel's own clocks stand still during a jump."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page[: len(_RDTSC)] = _RDTSC
    code = ctypes.c_char.from_buffer(page)  # this object keeps the page mapped
    function = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(code))

    def read(_code: ctypes.c_char = code) -> int:
        return int(function())

    return read


def ticks_in_a_second(read: Callable[[], int]) -> float:
    """Return the measured rate of the time stamp counter in Hz."""
    begun, first = time.monotonic(), read()
    time.sleep(0.3)
    return (read() - first) / (time.monotonic() - begun)


def free_memory() -> int:
    """Return the bytes of free memory once the caches have been dropped.

    MemFree does not count free pages on the CPUs' own lists, which hold up to an eighth of memory (from 6.7 on); they
    are added here.
    """
    for _ in range(3):
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
    zones = Path("/proc/zoneinfo").read_text()
    return sum(map(int, re.findall(r"^ +(?:nr_free_pages|count:) +(\d+)$", zones, re.MULTILINE))) * mmap.PAGESIZE


def own_memory() -> int:
    """Return the bytes that only this process uses, for its records: they must not be taken for a leak."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * mmap.PAGESIZE


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(prog="rounds")
    parser.add_argument("peers", help="names, with commas")
    parser.add_argument("rounds", type=int)
    parser.add_argument("--memory", action="store_true", help="look at free memory after each switch")
    options = parser.parse_args()
    read = time_stamps()
    frequency = ticks_in_a_second(read)
    microseconds: list[int] = []
    free: list[int] = []
    wrong = 0
    with Peers() as peers:
        for _ in range(options.rounds):
            for name in options.peers.split(","):
                message = os.urandom(_MESSAGE_SIZE)
                begun = read()
                visit = peers.switch(name, Order(message=message))
                microseconds.append(round((read() - begun) / frequency * 1e6))
                visit.raise_unless_done()
                wrong += visit.message != message or not visit.resident or visit.peer != name
                if options.memory:
                    gc.collect()  # garbage of Python must not be taken for a leak
                    free.append(free_memory() + own_memory())
        switches = {p.name: p.switches for p in peers.state.peers} if peers.state else {}
    print(json.dumps(SwitchRounds(tuple(microseconds), tuple(free), wrong, switches).to_json()))


if __name__ == "__main__":
    main()
