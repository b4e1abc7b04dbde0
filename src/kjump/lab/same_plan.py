"""One Plan, two machines: what a real kernel loads is loaded, byte for byte, on the emulated machine.

In the guest, `python3 -m kjump.lab.same_plan PROGRAM [ARG...]` calls a program and prints the Plan, the mailbox's place
and the result; outside, `replay` gives the emulated machine a mailbox at the same place and makes the same call.
"""

from __future__ import annotations

import base64
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path

from kjump.call.machine import Argument, CallMailbox, CallResult, Loaded
from kjump.call.program import from_elf
from kjump.errors import LabError
from kjump.kexec.plan import Plan
from kjump.ranges import RangeSet


@dataclass(frozen=True)
class KernelRun:
    """A call as a real kernel made it: its Plan, the mailbox's pages and cookie, arguments and result."""

    plan: Plan
    pages: tuple[int, ...]
    cookie: bytes
    args: tuple[Argument, ...]
    value: int
    output: bytes

    def encode(self) -> str:
        """Return it as a line of text."""
        return base64.b64encode(pickle.dumps(self)).decode()

    @classmethod
    def decode(cls, text: str) -> KernelRun:
        """Read what `encode` wrote, in our own guest; LabError when it is something else."""
        found = pickle.loads(base64.b64decode(text))
        if not isinstance(found, cls):
            raise LabError("the guest did not print a run")
        return found


def replay(run: KernelRun, memory: int) -> CallResult:
    """Make the call on an emulated machine with `memory` bytes; LabError when the mailbox's pages are not to be had."""
    from kjump.emulator.linux import KERNELS, Setup
    from kjump.emulator.machine import EmulatedMachine, EmulatedPages

    class SamePlace(EmulatedMachine):
        """An emulated machine whose pinned pages are those that the real one had."""

        def pin(self, count: int, avoid: RangeSet) -> EmulatedPages:
            if len(run.pages) != count or not self.linux.pages.take_these(run.pages):
                raise LabError("the emulated machine uses a page that the mailbox had")
            return EmulatedPages(self.linux, run.pages)

    machine = SamePlace(Setup(KERNELS["6.12"], memory=memory))
    box = CallMailbox(machine, RangeSet(), run.cookie)
    with Loaded(machine, "the program", run.plan, box) as loaded:
        return loaded.call(*run.args)


def main() -> None:
    """Call a program on the kernel that runs, with strings as arguments, and print the run."""
    from kjump.call.host import HostMachine

    path, *words = sys.argv[1:]
    args = tuple(word.encode() for word in words)
    with HostMachine().load(from_elf(Path(path).read_bytes(), path)) as loaded:
        assert loaded.mailbox is not None
        box = loaded.mailbox
        result = loaded.call(*args)
        print(KernelRun(loaded.plan, box.addresses, box.cookie, args, result.value, result.output).encode())


if __name__ == "__main__":
    from kjump.lab.same_plan import main as imported_main

    imported_main()  # so that what is pickled is named as it is imported elsewhere
