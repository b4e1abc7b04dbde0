"""The window: the physical range that a second kernel runs in, and how it is laid out.

```
window.start                                                            window.end
| kernel, unpacked in place |  free for the kernel  | initrd | reserved |
                                                             gate, door, boot_params, command line,
                                                             elfcorehdr, notes, identity tables: no kernel's RAM
```

The second kernel's memory map says that the reserved part is not RAM, so the kernel's boot leaves it intact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from kjump.errors import PlanError
from kjump.formats.e820 import IomemResource
from kjump.gates import DOOR_SIZE, GATE_SIZE, identity_tables_size
from kjump.kexec.way_back import WayBack
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet, align_down, align_up

MIB = 1 << 20
SIZES = (128 * MIB, 96 * MIB, 80 * MIB)
"""Window sizes in bytes, the preferred one first. At the end of a save by the lab's kernel and initramfs 70 MiB of
128 MiB were free, and 8 MiB of 64 MiB; they do not boot in 56 MiB."""
DEFAULT_SIZE = SIZES[0]
ALIGNMENT = 2 * MIB
LOWEST = 16 * MIB
"""The lowest start of a window: an x86 kernel loaded below it moves itself up to its preferred address
(CONFIG_PHYSICAL_START), out of the window."""
HIGHEST = 4 << 30
"""The highest end of a window: devices with 32-bit DMA addresses must reach the second kernel's memory."""

_COMMAND_LINE_SIZE = PAGE_SIZE
_MUST_NOT_MOVE = ("Kernel ", "Crash kernel", "GART")


@dataclass(frozen=True)
class WindowLayout:
    """The addresses and sizes of what lies in a window; physical, in bytes."""

    window: Range
    gate: int
    door: int
    boot_params: int
    command_line: int
    elf_headers: int
    elf_headers_size: int
    tables: int
    tables_size: int

    @property
    def reserved(self) -> Range:
        """The part of the window that no kernel uses as RAM: gate, tables and the like."""
        return Range(self.gate, self.window.end)

    @property
    def way_back(self) -> WayBack:
        """The addresses of the way back that the second kernel's command line must give."""
        return WayBack(self.gate, self.tables)

    @property
    def usable(self) -> Range:
        """The part of the window that is the second kernel's RAM."""
        return Range(self.window.start, self.gate)


def lay_out(window: Range, *, elf_headers_size: int, memory_end: int, huge: bool) -> WindowLayout:
    """Lay out `window`, with the reserved part at its top.

    `elf_headers_size` is in bytes; `memory_end` is the end of the physical addresses that the identity tables map, with
    1 GiB pages if `huge`. PlanError when the window is not aligned, or too small or too low for any kernel.
    """
    if window.start % ALIGNMENT or window.end % PAGE_SIZE:
        raise PlanError(f"window {window} must start at a multiple of 2 MiB and end at one of 4 KiB")
    if window.start < LOWEST:
        raise PlanError(f"window {window} must not begin below {LOWEST:#x}: kernels move themselves above it")
    elf_size = align_up(elf_headers_size, PAGE_SIZE)
    tables_size = identity_tables_size(memory_end, huge=huge)
    total = GATE_SIZE + DOOR_SIZE + PAGE_SIZE + _COMMAND_LINE_SIZE + elf_size + tables_size
    gate = align_down(window.end - total, 64 << 10)
    if gate < window.start + 16 * MIB:
        raise PlanError(f"window {window} is too small for a kernel: give at least 64 MiB")
    door = gate + GATE_SIZE
    boot_params = door + DOOR_SIZE
    command_line = boot_params + PAGE_SIZE
    elf_headers = command_line + _COMMAND_LINE_SIZE
    return WindowLayout(
        window, gate, door, boot_params, command_line, elf_headers, elf_size, elf_headers + elf_size, tables_size
    )


class Costs(Protocol):
    """What a window at a given place costs: see `kexec.placement`."""

    def cost(self, window: Range) -> int:
        """Return the cost of `window`; lower is better."""
        ...


def places(iomem: Iterable[IomemResource], taken: Iterable[Range] = ()) -> RangeSet:
    """Return the running kernel's RAM in which a window may lie, aligned to ALIGNMENT.

    Left out are the running kernel's text and data, a crash kernel's memory, `taken`, and RAM that a driver added: the
    driver may have to give it back, and it is absent after power-on.
    """
    resources = list(iomem)
    ram = RangeSet(r.range for r in resources if r.is_ram and not r.ram_driver)
    fixed = RangeSet(r.range.aligned_outside(ALIGNMENT) for r in resources if r.name.startswith(_MUST_NOT_MOVE))
    return ((ram & RangeSet([Range(LOWEST, HIGHEST)])) - fixed - RangeSet(taken)).aligned_inside(ALIGNMENT)


def find_window(areas: RangeSet, size: int, costs: Costs | None = None) -> Range:
    """Return the best place for a window of `size` bytes in `areas` (see `places`); PlanError if there is none.

    Among places of equal cost the lowest is taken, because kernels keep page tables, per-CPU data and memory maps near
    the top of RAM, and those are best not swapped out.
    """
    candidates = (
        Range.of_size(start, size) for area in areas for start in range(area.start, area.end - size + 1, ALIGNMENT)
    )
    window = min(candidates, key=lambda w: (costs.cost(w) if costs else 0, w.start), default=None)
    if window is None:
        largest = max((r.size for r in areas), default=0)
        raise PlanError(
            f"no room for a window of {size // MIB} MiB between 16 MiB and 4 GiB: the largest gap in RAM "
            f"clear of the running kernel is {largest // MIB} MiB; take a smaller one"
        )
    return window


def low_memory(ram: RangeSet) -> Range:
    """Return the RAM below 640 KiB that a second kernel needs for its real-mode trampoline, in whole pages.

    Page 0 is left out: it holds the BIOS data area, which every kernel reads at boot. PlanError when less than 64 KiB
    are left.
    """
    below = (ram & RangeSet([Range(PAGE_SIZE, 640 << 10)])).aligned_inside(PAGE_SIZE)
    largest = max(below, key=lambda r: r.size, default=Range(0, 0))
    if largest.size < 64 << 10:
        raise PlanError("less than 64 KiB of RAM lie below 640 KiB: a second kernel cannot start its CPUs")
    return largest


def split_low_memory(low: Range, count: int) -> list[Range]:
    """Return `low` in `count` equal parts, one for each second kernel; PlanError when they become too small."""
    size = align_down(low.size // count, PAGE_SIZE)
    if size < 64 << 10:
        raise PlanError(f"{low.size >> 10} KiB of low memory are too little for {count} second kernels")
    return [Range.of_size(low.start + i * size, size) for i in range(count)]
