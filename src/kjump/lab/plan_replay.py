"""Runs the same Plan on a real kernel and on the emulated machine.

In the guest, `python3 -m kjump.lab.plan_replay PROGRAM [ARG...]` calls a program and prints a `KernelRun` as JSON; on
the host, `replay` makes the same call on the emulated machine, with the mailbox at the same physical address.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from kjump.call.machine import CallMailbox, CallResult, Loaded
from kjump.call.program import from_elf
from kjump.errors import FormatError, LabError
from kjump.formats.record import JsonObject, Record
from kjump.kexec.mailbox import COOKIE_SIZE
from kjump.kexec.plan import Plan, Segment, make_plan
from kjump.ranges import RangeSet


@dataclass(frozen=True)
class KernelRun:
    """A call on a real kernel: its Plan, the mailbox's pages and cookie, arguments (bytes) and result."""

    plan: Plan
    pages: tuple[int, ...]
    cookie: bytes
    args: tuple[bytes, ...]
    value: int
    output: bytes

    def to_json(self) -> JsonObject:
        """Return it as a JSON object, with bytes in hexadecimal digits."""
        return {
            "entry": self.plan.entry,
            "flags": self.plan.flags,
            "segments": [
                {"address": s.address, "memory_size": s.memory_size, "data": s.data.hex(), "name": s.name}
                for s in self.plan.segments
            ],
            "pages": list(self.pages),
            "cookie": self.cookie.hex(),
            "args": [arg.hex() for arg in self.args],
            "value": self.value,
            "output": self.output.hex(),
        }

    @classmethod
    def from_json(cls, record: Record) -> KernelRun:
        """Read what `to_json` made; FormatError, or PlanError when Linux would refuse the Plan."""
        segments = [
            Segment(
                s.integer("address"),
                s.integer("memory_size", high=_MEMORY_LIMIT),
                _decoded(s.text("data", limit=2 * _MEMORY_LIMIT), s.what),
                s.text("name"),
            )
            for s in record.items("segments")
        ]
        return cls(
            plan=make_plan(record.integer("entry"), segments, record.integer("flags")),
            pages=record.integers("pages"),
            cookie=record.hexadecimal("cookie", length=COOKIE_SIZE),
            args=tuple(_decoded(arg, record.what) for arg in record.texts("args")),
            value=record.integer("value"),
            output=record.hexadecimal("output"),
        )


def _decoded(digits: str, what: str) -> bytes:
    try:
        return bytes.fromhex(digits)
    except ValueError:
        raise FormatError(f"{what}: there are not only hexadecimal digits") from None


_MEMORY_LIMIT = 1 << 26
"""The largest size of a segment in bytes; a program and its tables take far less."""


def replay(run: KernelRun, memory: int) -> CallResult:
    """Make the call on an emulated machine with `memory` bytes; LabError when the mailbox's pages are in use."""
    from kjump.emulator.linux import KERNELS, Setup
    from kjump.emulator.machine import EmulatedMachine, EmulatedPages

    class SamePlace(EmulatedMachine):
        """An emulated machine whose pinned pages have the same physical addresses as the real machine's."""

        def pin(self, count: int, avoid: RangeSet) -> EmulatedPages:
            if len(run.pages) != count or not self.linux.pages.take_these(run.pages):
                raise LabError("the emulated machine uses a page that the mailbox had")
            return EmulatedPages(self.linux, run.pages)

    machine = SamePlace(Setup(KERNELS["6.12"], memory=memory))
    box = CallMailbox(machine, RangeSet(), run.cookie)
    with Loaded(machine, "the program", run.plan, box) as loaded:
        return loaded.call(*run.args)


def main() -> None:
    """Call a program on the running kernel, with strings as arguments, and print the run."""
    from kjump.call.host import HostMachine

    path, *strings = sys.argv[1:]
    args = tuple(string.encode() for string in strings)
    with HostMachine().load(from_elf(Path(path).read_bytes(), path)) as loaded:
        assert loaded.mailbox is not None
        box = loaded.mailbox
        result = loaded.call(*args)
        run = KernelRun(loaded.plan, tuple(box.addresses), box.cookie, args, result.value, result.output)
    print(json.dumps(run.to_json()))


if __name__ == "__main__":
    main()
