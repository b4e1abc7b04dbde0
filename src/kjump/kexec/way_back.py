"""The way back from a second kernel to the first, opened before anything else with what the command line says.

The gate holds the first kernel's re-entry address, and lies in the reserved part of the window, which no kernel uses.
A second kernel enters it through the door: one page of code that is in that kernel's identity map, loads the gate's
page tables and jumps to one of the gate's entries. /dev/mem is not read for that, so a kernel that refuses access to
/dev/mem can come back too.
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
        """Return the value of the option on the command line `line`; None without the option, FormatError if malformed.

        The option is searched for without parsing the rest of the line, whose errors must not close the way back.
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
        """Return the Plan by which the second kernel enters the first one and does not return."""
        return self._through_the_door(self.gate + GATE_SIZE, GATE_WAY_BACK, 0)

    def crash_plan(self, crash_kernel: Range) -> Plan:
        """Return the Plan, for the crash slot, by which a second kernel that panics enters the first one.

        `crash_kernel` is the physical range that the second kernel set aside (`crashkernel=`).
        """
        return self._through_the_door(crash_kernel.start, GATE_CRASH, ON_CRASH)

    def _through_the_door(self, door_at: int, entry: int, flags: int) -> Plan:
        door = Door(self.tables + PAGE_SIZE, self.tables, self.gate + entry, gdt_base=0, gdt_limit=0)
        return make_plan(door_at, [Segment(door_at, DOOR_SIZE, door.pack(), "door")], ARCH_X86_64 | flags)
