"""The way back as a second kernel opens it: from its command line alone, before anything can fail.

The gate has noted how the first kernel wants to be re-entered, and lies in a part of the window that no kernel owns.
To enter it from a second kernel takes one page of program on that kernel's identity map: the door, which loads the
gate's page tables and goes on to one of the gate's entries. So nothing need be read through /dev/mem before the way
back is open, and a kernel that refuses that comes back too.
"""

from __future__ import annotations

from dataclasses import dataclass

from kjump.errors import FormatError
from kjump.gates import DOOR_SIZE, GATE_CRASH, GATE_SIZE, GATE_WAY_BACK, Door
from kjump.kexec.plan import ARCH_X86_64, ON_CRASH, Plan, Segment, make_plan
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range

OPTION = "kjump.way_back"


@dataclass(frozen=True)
class WayBack:
    """Where a second kernel finds its gate and the gate's page tables: physical addresses, multiples of the page size.

    `tables` is the PML5; the PML4 is the page behind it (`gates.identity_tables`).
    """

    gate: int
    tables: int

    @property
    def option(self) -> str:
        """The option for the second kernel's command line."""
        return f"{OPTION}={self.gate:#x},{self.tables:#x}"

    @classmethod
    def on_command_line(cls, line: str) -> WayBack | None:
        """Return what the command line `line` says; None when it says nothing, FormatError when that is damaged.

        It is looked for by itself, so that nothing else on the command line can get in its way.
        """
        found = [word.partition("=")[2] for word in line.split() if word.startswith(f"{OPTION}=")]
        if not found:
            return None
        try:
            gate, tables = (int(number, 16) for number in found[-1].split(","))
        except ValueError:
            raise FormatError(f"{OPTION}={found[-1]} on the kernel's command line is not two addresses") from None
        if gate <= 0 or tables <= 0 or gate % PAGE_SIZE or tables % PAGE_SIZE:
            raise FormatError(f"{OPTION}={found[-1]} on the kernel's command line is not two addresses of pages")
        return cls(gate, tables)

    def plan(self) -> Plan:
        """Return the Plan by which the second kernel leaves for the first, for good."""
        return self._through_the_door(self.gate + GATE_SIZE, GATE_WAY_BACK, 0)

    def crash_plan(self, crash_kernel: Range) -> Plan:
        """Return the Plan by which a second kernel that panics leaves for the first, from its crash slot.

        `crash_kernel` is the physical range that the second kernel set aside (`crashkernel=`).
        """
        return self._through_the_door(crash_kernel.start, GATE_CRASH, ON_CRASH)

    def _through_the_door(self, door_at: int, entry: int, flags: int) -> Plan:
        door = Door(self.tables + PAGE_SIZE, self.tables, self.gate + entry, gdt_base=0, gdt_limit=0)
        return make_plan(door_at, [Segment(door_at, DOOR_SIZE, door.pack(), "door")], ARCH_X86_64 | flags)
