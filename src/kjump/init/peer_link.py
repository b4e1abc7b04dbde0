"""A resident second kernel's place beside A: its gate, its channel, the door by which it leaves and comes back.

Any process of the second kernel with root's rights may use it: PID 1 of kjump's initramfs, or a command in a
userland of its own, which finds the gate by `kjump.gate=` on the kernel's command line.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

from kjump.errors import FormatError, UsageError
from kjump.gates import GATE_SIZE, Gate
from kjump.hibernate.report import Report
from kjump.host import kernel_memory, procfs
from kjump.init.system import kernel_options
from kjump.kexec import loader
from kjump.kexec.channel import Channel, Parcel
from kjump.kexec.linux import door_plan
from kjump.kexec.mailbox import Outcome
from kjump.kexec.physical import read_physical
from kjump.kexec.way_back import WayBack

GATE_OPTION = "kjump.gate"


def is_resident() -> bool:
    """Tell whether the running kernel is a resident peer of another."""
    return GATE_OPTION in kernel_options()


@dataclass(frozen=True)
class Answer:
    """What goes to A: an `outcome`, a `report`, a `message` of bytes."""

    outcome: Outcome
    report: Report = field(default_factory=Report)
    message: bytes = b""


class Residence:
    """The gate at physical `gate_at`, and the channel that it names."""

    def __init__(self, gate_at: int) -> None:
        """Look at the gate; FormatError when there is none, or no channel where it says."""
        self._gate_at = gate_at
        self.gate = Gate.unpack(read_physical(gate_at, GATE_SIZE))
        self.channel = Channel.at_physical(self.gate.mailbox, self.gate.cookie)

    def look_again(self) -> Gate:
        """Return the gate as it stands now: it notes when A came in."""
        self.gate = Gate.unpack(read_physical(self._gate_at, GATE_SIZE))
        return self.gate

    @classmethod
    def here(cls) -> Residence:
        """Return the running kernel's; UsageError when it is no resident peer, FormatError when the gate is damaged."""
        option = kernel_options().get(GATE_OPTION)
        if option is None:
            raise UsageError(
                f"this kernel was not started by `kjump boot-peer` (no {GATE_OPTION}= on its command line)"
            )
        try:
            return cls(int(option, 0))
        except ValueError:
            raise FormatError(f"{GATE_OPTION}={option} on the kernel's command line is not a number") from None

    def open(self) -> None:
        """Load the door, by which this kernel leaves and comes back, and the way back into the crash slot."""
        if not loader.current().is_loaded():
            self.load_door()
        self.cover_crash()

    def load_door(self) -> None:
        """Load the door, whatever is loaded: PID 1 begins with a way back for good."""
        with kernel_memory.Kcore() as kcore:
            loader.current().load(door_plan(self._gate_at, self.gate, kernel_memory.boot_cpu_gdt(kcore)))

    def cover_crash(self) -> bool:
        """See that a panic leads to A too, by the crash slot; tell whether it does.

        Once is enough: what is loaded enters the gate where it lies, and that knows how A came in last.
        """
        if loader.current().is_loaded(on_crash=True):
            return True
        crash_kernel = procfs.crash_kernel()
        if crash_kernel is None:
            return False
        loader.current().load(self._way_back.crash_plan(crash_kernel))
        return True

    @property
    def _way_back(self) -> WayBack:
        return WayBack(self._gate_at, self.gate.cr3_5level)

    def away(self, answer: Answer) -> Parcel:
        """Leave for A with `answer`; returns A's next order when A has come back here.

        HostError when this kernel refuses to leave: nothing has changed then.
        """
        here = replace(answer.report, resident=True, release=os.uname().release)
        self._report(replace(answer, report=here))
        os.sync()
        loader.current().jump()
        return self.channel.order()

    def leave(self, answer: Answer) -> None:
        """Leave for A for good; returns only by an error."""
        loader.current().load(self._way_back.plan())
        self._report(answer)
        loader.current().jump()

    def _report(self, answer: Answer) -> None:
        # Not the order that the answer was made for: another program may have gone to A and back meanwhile.
        sequence = self.channel.order().sequence
        try:
            self.channel.report(answer.outcome, Parcel(sequence, answer.report.to_json(), answer.message))
        except UsageError as error:
            report = replace(answer.report, reason=f"the answer did not fit: {error}")
            self.channel.report(Outcome.FAILED, Parcel(sequence, report.to_json()))
