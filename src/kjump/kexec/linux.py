"""Plans for a second Linux kernel: bzImage, initrd and command line, laid out in a window.

The gate enters the kernel by the 64-bit boot protocol (Documentation/arch/x86/boot.rst).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kjump.errors import PlanError
from kjump.formats import bootparams, bzimage, cmdline, e820, elf
from kjump.formats.bzimage import BzImage
from kjump.formats.e820 import RAM, RESERVED, E820Entry
from kjump.gates import (
    DOOR_SIZE,
    GATE_ENTRY,
    GATE_SIZE,
    GATE_SWITCH,
    GATE_WAY_BACK,
    Door,
    Gate,
    identity_tables,
)
from kjump.kexec.plan import ARCH_X86_64, PRESERVE_CONTEXT, Plan, Segment, make_plan
from kjump.kexec.window import WindowLayout
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet, align_down, align_up

_ISA_END = 1 << 20


@dataclass(frozen=True)
class Surroundings:
    """What a second kernel is told of the machine, and what the way back needs to know of the first kernel.

    `memory_map` is the firmware's; `ram` the part that the first kernel uses as RAM (physical ranges, bytes);
    `low` the low memory lent to the second kernel; `vmcoreinfo_note` the first kernel's VMCOREINFO as a
    complete ELF note, empty when /proc/vmcore is not wanted; `rsdp` the physical address of the ACPI root pointer or 0;
    `huge` whether the CPU has 1 GiB pages; `gate` the gate's fields that the first kernel knows (its GDT, the mailbox);
    `lent` all memory lent to second kernels, this one and others; `screen_info` the first kernel's structure of that
    name (64 bytes, or empty), without which the second kernel has a serial console only.
    """

    memory_map: tuple[E820Entry, ...]
    ram: RangeSet
    low: Range
    vmcoreinfo_note: bytes
    rsdp: int
    huge: bool
    gate: Gate
    lent: RangeSet = field(default_factory=RangeSet)
    screen_info: bytes = b""

    @property
    def memory_end(self) -> int:
        """The end of the addresses that the identity tables must map: all RAM, and the APICs below 4 GiB."""
        return max(4 << 30, *(r.end for r in self.ram))


def read_once(path: Path) -> bytes:
    """Return the contents of the file at `path`, and drop it from the page cache, so that no image contains it."""
    with path.open("rb") as file:
        data = file.read()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return data


def read_kernel(path: Path) -> BzImage:
    """Return the kernel in the file `path`; FormatError, with the path, for no bzImage, OSError if unreadable."""
    return bzimage.parse_file(read_once(path), path)


def elf_headers_size(ram: RangeSet, note: bytes, lent: int = 2) -> int:
    """Return an upper bound in bytes for the headers that describe `ram` to the second kernel's /proc/vmcore.

    `lent` is how many ranges (a window, low memory) are taken out of `ram`; each can split one range in two.
    """
    return elf.kdump_headers_size(len(ram) + lent, note) if note else 0


def second_kernel_map(memory_map: Sequence[E820Entry], layout: WindowLayout, low: Range) -> tuple[E820Entry, ...]:
    """Return the memory map to give the second kernel.

    Low memory and the usable part of the window are RAM. All other RAM of the machine is reserved, so that the kernel
    places no device there. The firmware's other entries are unchanged. Adjacent entries of one type are joined, since
    boot_params hold a limited number. The first page above 1 MiB is left out: the kernel joins adjacent entries too,
    and marks a reserved range that begins below 1 MiB as busy (e820__reserve_resources); with IO_STRICT_DEVMEM /dev/mem
    then refuses it.
    """
    own = RangeSet([low, layout.usable])
    entries = [E820Entry(r, RAM) for r in own]
    own |= RangeSet([Range.of_size(_ISA_END, PAGE_SIZE)])
    for entry in memory_map:
        if entry.type == RAM:
            entries += [E820Entry(r, RESERVED) for r in RangeSet([entry.range]) - own]
        else:
            entries.append(entry)
    return tuple(e820.joined(entries))


def where_it_runs(kernel: BzImage, layout: WindowLayout) -> Range:
    """Return the physical range that `kernel`, loaded at the window's start, uses before it reads its memory map.

    The kernel's decompressor moves it up to its preferred address and alignment without regard to the memory map.
    PlanError when that moves it out of the window. Source: Documentation/arch/x86/boot.rst (pref_address, init_size).
    """
    takes = kernel.runtime_range(layout.window.start)
    if takes.start > layout.window.start and not layout.usable.covers(takes):
        raise PlanError(
            f"loaded at {layout.window.start:#x} this kernel moves itself to {takes}, out of the window "
            f"{layout.window}: begin the window at {takes.start:#x}, or take another kernel (CONFIG_PHYSICAL_START)"
        )
    return takes


def low_memory_segment(low: Range) -> Segment:
    """Return the segment that lends `low` to a second kernel: it has no data; the jump swaps its pages out and back."""
    return Segment(low.start, low.size, b"", "low memory")


@dataclass(frozen=True)
class LinuxPeer:
    """A second Linux: `kernel` (a bzImage), `initrd` and `command_line`, to be loaded in the window of `layout`."""

    kernel: BzImage
    initrd: bytes
    command_line: str
    layout: WindowLayout

    def plan(self, around: Surroundings, *, preserve: bool) -> Plan:
        """Return the Plan that starts this kernel; with `preserve` the jump keeps the first kernel, to come back to.

        PlanError when the window is too small for kernel and initrd together, or the command line too long.
        """
        segments = self.segments(around, self.layout.gate)
        flags = ARCH_X86_64
        if preserve:
            flags |= PRESERVE_CONTEXT
            segments.append(low_memory_segment(around.low))
        return make_plan(self.layout.gate + GATE_ENTRY, segments, flags)

    def segments(self, around: Surroundings, first_gate: int) -> list[Segment]:
        """Return the segments of the window; `first_gate` is the physical address of the gate that A enters next time.

        PlanError as `plan`.
        """
        layout = self.layout
        vmcore_ram = around.ram - RangeSet([layout.window, around.low]) - around.lent
        headers = b""
        command_line = self.command_line
        if around.vmcoreinfo_note:
            headers = elf.kdump_headers(
                vmcore_ram.aligned_inside(PAGE_SIZE), around.vmcoreinfo_note, layout.elf_headers
            )
            command_line = cmdline.join([command_line, f"elfcorehdr={layout.elf_headers:#x}"])
        initrd_at = self._place_initrd()
        around = dataclasses.replace(around, gate=dataclasses.replace(around.gate, next_entry=first_gate + GATE_ENTRY))
        reserved = self._reserved(around, headers, command_line, initrd_at)
        segments = [
            Segment(
                layout.window.start,
                initrd_at - layout.window.start,
                bytes(self.kernel.protected_mode),
                "kernel",
            ),
            Segment(initrd_at, layout.gate - initrd_at, self.initrd, "initrd"),
            Segment(layout.gate, layout.reserved.size, reserved, "gate"),
        ]
        return [s for s in segments if s.memory_size]

    def _place_initrd(self) -> int:
        layout = self.layout
        at = align_down(min(layout.gate, self.kernel.initrd_addr_max + 1) - len(self.initrd), PAGE_SIZE)
        kernel_end = align_up(where_it_runs(self.kernel, layout).end, PAGE_SIZE)
        if at < kernel_end:
            missing = align_up(kernel_end - at, 1 << 20) >> 20
            raise PlanError(f"window {layout.window} is {missing} MiB too small for this kernel and initrd")
        return at

    def _reserved(self, around: Surroundings, headers: bytes, command_line: str, initrd_at: int) -> bytes:
        """Return the contents of the window's reserved part: gate, boot_params, command line, ELF headers, tables."""
        layout = self.layout
        encoded = cmdline.encode(command_line) + b"\0"
        limit = min(self.kernel.cmdline_size, layout.elf_headers - layout.command_line - 1)
        if len(encoded) - 1 > limit:
            raise PlanError(f"the command line has {len(encoded) - 1} bytes; this kernel takes {limit}")
        if len(headers) > layout.elf_headers_size:
            raise PlanError(f"{len(headers)} bytes of ELF headers for {layout.elf_headers_size} of room in the window")
        memory_map = second_kernel_map(around.memory_map, layout, around.low)
        # efi_info is left out: the first kernel has given the firmware's run-time services the only virtual map that
        # they accept. A kernel without efi_info behaves as if a BIOS had started it, so `noefi` is not needed, and it
        # finds the ACPI tables by acpi_rsdp_addr. alt_mem_k is left out because it gives the size of all RAM.
        more_at, more = self._more_memory_map(memory_map, layout.command_line + len(encoded))
        boot_params = bootparams.BootParams(
            setup_header=self.kernel.header,
            cmdline_address=layout.command_line,
            initrd=Range.of_size(initrd_at, len(self.initrd)),
            e820=memory_map[: bootparams.E820_MAX],
            acpi_rsdp=around.rsdp,
            screen_info=bootparams.screen_to_hand_on(around.screen_info),
            setup_data=more_at,
        )
        gate = dataclasses.replace(
            around.gate,
            cr3_5level=layout.tables,
            cr3_4level=layout.tables + PAGE_SIZE,
            peer_entry=layout.window.start + self.kernel.entry64_offset,
            peer_argument=layout.boot_params,
            low_page=around.low.start,
        )
        pieces = {
            layout.gate: gate.pack(),
            layout.boot_params: bootparams.build(boot_params),
            layout.command_line: encoded,
            layout.elf_headers: headers,
            layout.tables: identity_tables(layout.tables, around.memory_end, huge=around.huge),
        }
        if more:
            pieces[more_at] = more
        return _filled(layout.reserved, pieces)

    def _more_memory_map(self, memory_map: Sequence[E820Entry], after: int) -> tuple[int, bytes]:
        """Return (address, setup_data node) for the entries that do not fit in boot_params; (0, b"") if all fit.

        The address is physical, the first multiple of 8 from `after` on, behind the command line.
        """
        more = memory_map[bootparams.E820_MAX :]
        if not more:
            return 0, b""
        at, node = align_up(after, 8), bootparams.e820_extension(more)
        if at + len(node) > self.layout.elf_headers:
            raise PlanError(
                f"the memory map for the second kernel has {len(memory_map)} ranges, more than there is room for: "
                "a firmware with fewer is needed"
            )
        return at, node


def _filled(where: Range, pieces: dict[int, bytes]) -> bytes:
    """Return the contents of the physical range `where`: `pieces` at their physical addresses, zeros elsewhere."""
    content = bytearray(where.size)
    for address, piece in pieces.items():
        start = address - where.start
        content[start : start + len(piece)] = piece
    return bytes(content)


def way_back_plan(gate_at: int, gate: Gate) -> Plan:
    """Return the Plan by which a restoring kernel (C) enters the first one: the gate at its own address `gate_at`.

    The gate is a segment so that the kernel's identity map covers it; `gate` has the values of its fields. (A second
    kernel finds its gate as the first kernel left it, and uses `kexec.way_back` instead.)
    """
    segment = Segment(gate_at, GATE_SIZE, gate.pack(), "gate")
    return make_plan(gate_at + GATE_WAY_BACK, [segment], ARCH_X86_64)


def restore_plan(layout: WindowLayout, gate: Gate, memory_end: int, huge: bool, page_list: bytes) -> Plan:
    """Return the Plan by which a boot kernel enters A; the gate first moves A's pages to where they belong.

    The reserved part of the window `layout` gets what a restoring kernel would find there: the gate with the fields of
    `gate`, and identity tables up to `memory_end`. `page_list` (`gates.pack_page_list`), which says what the gate
    moves, is loaded at the window's start; PlanError when it reaches into the reserved part.
    """
    gate = dataclasses.replace(gate, restore=layout.window.start)
    tables = identity_tables(layout.tables, memory_end, huge=huge)
    reserved = _filled(layout.reserved, {layout.gate: gate.pack(), layout.tables: tables})
    segments = [
        Segment(layout.window.start, align_up(len(page_list), PAGE_SIZE), page_list, "page list"),
        Segment(layout.gate, layout.reserved.size, reserved, "gate"),
    ]
    return make_plan(layout.gate + GATE_WAY_BACK, segments, ARCH_X86_64)


def door_plan(gate_at: int, gate: Gate, gdt: tuple[int, int]) -> Plan:
    """Return the Plan by which a resident second kernel jumps to the first one, to be re-entered later.

    Its one segment is the door, which lies behind the gate at physical `gate_at`; `gdt` is (linear address, limit) of
    the GDT of the second kernel's CPU 0.
    """
    door_at = gate_at + GATE_SIZE
    door = Door(gate.cr3_4level, gate.cr3_5level, gate_at + GATE_SWITCH, *gdt)
    return make_plan(door_at, [Segment(door_at, DOOR_SIZE, door.pack(), "door")], ARCH_X86_64 | PRESERVE_CONTEXT)
