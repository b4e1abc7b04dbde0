"""Programs: physical-mode code that is called and returns, as a Plan.

A program is a set of segments and an entry point. It comes from an ELF executable (its PT_LOAD segments go to their
physical addresses; a position-independent one goes anywhere), from a flat binary, or is only the address of code that
is in memory already. `plan_call` puts the gate and the call shim in front:

```
gate | shim | block | page tables | stack | bytes in | bytes out        program's own segments
```

Without them (`plan_bare`) the kernel calls the entry point directly, and the program itself must return as the kernel
expects.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from kjump.errors import FormatError, PlanError
from kjump.formats import elf, relocations
from kjump.gates import FLAG_DESCRIPTORS, FLAG_RESIDENT, GATE_ENTRY, GATE_SIZE, Gate, gate_binary, identity_tables
from kjump.gates import identity_tables_size as tables_size
from kjump.gates.call import BLOCK_FLAG_FPU, BLOCK_SIZE, SHIM_SIZE, CallBlock, shim_binary
from kjump.kexec.plan import ARCH_I386, ARCH_X86_64, PRESERVE_CONTEXT, Plan, Segment, make_plan
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet, align_up

STACK_SIZE = 16 << 10
BUFFER_SIZE = 64 << 10
LOWEST = 2 << 20
"""The lowest physical address for gates and movable programs, clear of firmware and of Linux's low memory."""
_HIGHEST = 4 << 30


class Arch(enum.Enum):
    """An architecture: its name, word size in bits, ELF machine number, and kexec_load flag."""

    X86_64 = ("x86_64", 64, elf.EM_X86_64, ARCH_X86_64)
    I386 = ("i386", 32, elf.EM_386, ARCH_I386)

    def __init__(self, label: str, bits: int, machine: int, flag: int) -> None:
        """Take the values."""
        self.label = label
        self.bits = bits
        self.machine = machine
        self.flag = flag


class Preserve(enum.Flag):
    """The CPU state that a gate saves for A, in addition to what the kernel saves, so that a program may change it.

    FPU: the FPU and SSE registers and the CR0 and CR4 bits they need; DESCRIPTORS: segment registers, their
    bases, GDTR and IDTR.
    """

    NOTHING = 0
    FPU = 1
    DESCRIPTORS = 2


@dataclass(frozen=True)
class Program:
    """Code to call: `entry` and `segments` at physical addresses; those of a `movable` program are relative to 0.

    `relocations` of a movable program are (address of a word, addend): see `formats.relocations`.
    """

    arch: Arch
    entry: int
    segments: tuple[Segment, ...]
    name: str
    movable: bool = False
    relocations: tuple[tuple[int, int | None], ...] = ()

    @property
    def range(self) -> Range:
        """The physical range from the first to the last byte of all segments."""
        if not self.segments:
            return Range(0, 0)
        return Range(min(s.address for s in self.segments), max(s.range.end for s in self.segments))

    def at(self, address: int) -> Program:
        """Return a movable program relocated to physical `address` (page aligned)."""
        if not self.movable:
            raise PlanError(f"{self.name} has fixed addresses and cannot be put at {address:#x}")
        size = self.arch.bits // 8
        content = [(s, bytearray(s.data)) for s in self.segments]
        for place, addend in self.relocations:
            _relocate(content, place, addend, size, address)
        moved = (dataclasses.replace(s, address=s.address + address, data=bytes(d)) for s, d in content)
        return dataclasses.replace(
            self, entry=self.entry + address, segments=tuple(moved), movable=False, relocations=()
        )


def _relocate(content: list[tuple[Segment, bytearray]], place: int, addend: int | None, size: int, base: int) -> None:
    for segment, data in content:
        offset = place - segment.address
        if 0 <= offset <= segment.memory_size - size:
            data.extend(bytes(max(0, offset + size - len(data))))
            value = int.from_bytes(data[offset : offset + size], "little") if addend is None else addend
            data[offset : offset + size] = ((base + value) % (1 << 8 * size)).to_bytes(size, "little")
            return
    raise FormatError(f"ELF: a relocation at {place:#x} is not within any segment")


def from_flat(data: bytes, at: int, arch: Arch, name: str = "program") -> Program:
    """Return a flat binary for physical address `at`, its first byte the entry; PlanError unless page aligned."""
    if at % PAGE_SIZE:
        raise PlanError(f"{name}: {at:#x} is not a multiple of {PAGE_SIZE}")
    if not data:
        raise FormatError(f"{name} is empty")
    return Program(arch, at, (Segment(at, align_up(len(data), PAGE_SIZE), data, name),), name)


def in_memory(entry: int, arch: Arch) -> Program:
    """Return a fake image: a program without contents whose entry is code that is at physical `entry` already.

    Its one segment is empty, and not at address 0, where Linux 6.12 would take every page for its destination.
    """
    return Program(arch, entry, (Segment(PAGE_SIZE, 0, b"", "nothing"),), f"code at {entry:#x}")


@dataclass(frozen=True)
class Surface:
    """What a gate must know of a machine: RAM, the end of what page tables must map, 1 GiB pages or not, A's GDT.

    `gdt_base` (linear; 0: do not load GDTR) and `gdt_limit` are those of CPU 0 in A; `gate_flags` go into the gate.
    """

    ram: RangeSet
    memory_end: int
    huge: bool
    gdt_base: int = 0
    gdt_limit: int = 0
    gate_flags: int = 0


@dataclass(frozen=True)
class Layout:
    """The physical addresses of the parts in front of a program, from `base` on."""

    base: int
    tables_size: int

    @property
    def shim(self) -> int:
        """The call shim."""
        return self.base + GATE_SIZE

    @property
    def block(self) -> int:
        """The call block."""
        return self.shim + SHIM_SIZE

    @property
    def tables(self) -> int:
        """The identity tables (x86_64)."""
        return self.block + BLOCK_SIZE

    @property
    def stack(self) -> Range:
        """The function's stack."""
        return Range.of_size(self.tables + self.tables_size, STACK_SIZE)

    @property
    def bytes_in(self) -> Range:
        """The buffer for bytes that are passed as arguments."""
        return Range.of_size(self.stack.end, BUFFER_SIZE)

    @property
    def bytes_out(self) -> Range:
        """The buffer for the function's output."""
        return Range.of_size(self.bytes_in.end, BUFFER_SIZE)

    @property
    def range(self) -> Range:
        """All parts together."""
        return Range(self.base, self.bytes_out.end)


def lay_out(program: Program, surface: Surface, *, base: int | None = None) -> tuple[Layout, Program]:
    """Return the layout of the gate's parts, and the program at its final address: behind them if it is movable.

    `base` is the physical address of the first part (page aligned; default: chosen in RAM). PlanError when there is no
    room.
    """
    size = 0 if program.arch is Arch.I386 else tables_size(surface.memory_end, huge=surface.huge)
    needed = Layout(0, size).range.size
    own = align_up(program.range.end, PAGE_SIZE) if program.movable else 0
    if base is None:
        free = surface.ram & RangeSet([Range(LOWEST, _HIGHEST)])
        if not program.movable:
            free -= RangeSet([program.range.aligned_outside(PAGE_SIZE)])
        place = free.lowest_fit(needed + own, PAGE_SIZE)
        if place is None:
            raise PlanError(f"no {needed + own >> 10} KiB of free RAM between 2 MiB and 4 GiB for {program.name}")
        base = place.start
    layout = Layout(base, size)
    return layout, program.at(layout.range.end) if program.movable else program


def plan_bare(program: Program) -> Plan:
    """Return the Plan that enters `program` directly, without gate and shim."""
    return make_plan(program.entry, program.segments, program.arch.flag | PRESERVE_CONTEXT)


def plan_call(
    program: Program, layout: Layout, surface: Surface, *, mailbox: int, cookie: bytes, preserve: Preserve
) -> Plan:
    """Return the Plan that calls `program` (at its final address, see `lay_out`) behind gate and shim.

    `mailbox` (physical) and `cookie` are those of the page for requests and replies; `preserve` is what the gate saves.
    """
    front = front_segment(program, layout, surface, mailbox=mailbox, cookie=cookie, preserve=preserve)
    segments = [front, *program.segments]
    return make_plan(layout.base + GATE_ENTRY, segments, program.arch.flag | PRESERVE_CONTEXT)


def front_segment(
    program: Program, layout: Layout, surface: Surface, *, mailbox: int, cookie: bytes, preserve: Preserve
) -> Segment:
    """Return the segment in front of `program`: gate, shim, block, tables, stack, buffers."""
    flags = surface.gate_flags | FLAG_RESIDENT
    if Preserve.DESCRIPTORS in preserve:
        flags |= FLAG_DESCRIPTORS
    gate = Gate(
        flags=flags,
        cr3_5level=layout.tables,
        cr3_4level=layout.tables + PAGE_SIZE,
        peer_entry=layout.shim,
        peer_argument=layout.block,
        a_gdt_base=surface.gdt_base,
        a_gdt_limit=surface.gdt_limit,
        next_entry=layout.base + GATE_ENTRY,
        mailbox=mailbox,
        cookie=cookie,
    )
    block = CallBlock(
        flags=BLOCK_FLAG_FPU if Preserve.FPU in preserve else 0,
        entry=program.entry,
        gate=layout.base,
        stack=layout.stack.end,
        mailbox=mailbox,
        cookie=cookie,
        in_address=layout.bytes_in.start,
        in_size=layout.bytes_in.size,
        out_address=layout.bytes_out.start,
        out_size=layout.bytes_out.size,
    )
    bits = program.arch.bits
    data = gate.pack(gate_binary(bits)) + shim_binary(bits) + block.pack()
    if bits == 64:
        data += identity_tables(layout.tables, surface.memory_end, huge=surface.huge)
    return Segment(layout.base, layout.range.size, data, "gate")


def from_elf(data: bytes, name: str = "program") -> Program:
    """Return an ELF executable as a program; FormatError when it is not one that can be called.

    A position-independent one (ET_DYN) is movable; it may have relative relocations only.
    """
    file = elf.parse(data)
    arch = next((a for a in Arch if a.machine == file.header.machine), None)
    if arch is None or arch.bits != file.header.bits:
        raise FormatError(f"{name} is not for x86_64 or i386 (ELF machine {file.header.machine})")
    if file.header.type not in (elf.ET_EXEC, elf.ET_DYN):
        raise FormatError(f"{name} is not an executable (ELF type {file.header.type}): link it first")
    pieces = [(load.paddr, load.memsz, _contents(data, load, name)) for load in file.loads if load.memsz]
    if not pieces:
        raise FormatError(f"{name} has nothing to load (no PT_LOAD)")
    segments = tuple(_join_pages(pieces, name))
    entry = file.header.entry
    if not any(entry in s.range for s in segments):
        raise FormatError(f"{name}: the entry point {entry:#x} is in none of its segments")
    if not any(entry in load.physical for load in file.loads):
        raise FormatError(f"{name}: there is no code in the file for the entry point {entry:#x}, only zeros")
    try:
        found = tuple(relocations.relative_relocations(data, file))
    except FormatError as error:
        raise FormatError(f"{name} cannot be called: {error}") from None
    movable = file.header.type == elf.ET_DYN
    return Program(arch, entry, segments, name, movable, found if movable else ())


def _contents(data: bytes, load: elf.ProgramHeader, name: str) -> bytes:
    if load.data.end > len(data):
        raise FormatError(f"{name} is cut off: {load.data.end} bytes are needed, {len(data)} are there")
    if load.filesz > load.memsz:
        raise FormatError(f"{name}: a segment has {load.filesz} bytes for {load.memsz} of memory")
    return data[load.offset : load.offset + load.filesz]


def _join_pages(pieces: Iterable[tuple[int, int, bytes]], name: str) -> Iterable[Segment]:
    """Yield page-aligned segments for (address, size, data); pieces that share pages go into one segment."""
    ordered = sorted(pieces)
    for (left, size, _), (right, right_size, _) in pairwise(ordered):
        if left + size > right:
            first, second = Range.of_size(left, size), Range.of_size(right, right_size)
            raise PlanError(f"{name}: segments overlap: {first} and {second}")
    pages = RangeSet(Range.of_size(a, s).aligned_outside(PAGE_SIZE) for a, s, _ in ordered)
    for area in pages:
        content = bytearray()
        for address, _, data in ordered:
            if address in area and data:
                content = content.ljust(address - area.start, b"\0") + data
        yield Segment(area.start, area.size, bytes(content), name)
