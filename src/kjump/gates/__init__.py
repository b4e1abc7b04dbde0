"""The programs at both ends of a jump (gate and door), and the page tables that they run on.

The gate is assembly (gate64.S, gate32.S) with a fixed binary interface (layouts.py); this module fills in its fields
and reads them back. Addresses are physical unless a docstring says linear; sizes are in bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from kjump.errors import FormatError
from kjump.gates.layouts import DOOR, DOOR_NUMBERS, GATE, GATE_FLAGS, GATE_NUMBERS, GATE_STATES, PAGE_LIST
from kjump.memory import PAGE_SIZE
from kjump.ranges import align_up

GATE_SIZE = GATE_NUMBERS["SIZE"]
GATE_ENTRY = GATE_NUMBERS["ENTRY"]
GATE_WAY_BACK = GATE_NUMBERS["WAY_BACK"]
GATE_CRASH = GATE_NUMBERS["CRASH"]
GATE_SWITCH = GATE_NUMBERS["SWITCH"]
DOOR_SIZE = DOOR_NUMBERS["SIZE"]
GATE_MAGIC = b"KJGATE1\0"
FLAG_INIT_CPUS = GATE_FLAGS["INIT_CPUS"]
FLAG_RESIDENT = GATE_FLAGS["RESIDENT"]
FLAG_DESCRIPTORS = GATE_FLAGS["DESCRIPTORS"]
FLAG_PAE = GATE_FLAGS["PAE"]
FLAG_CHOOSE = GATE_FLAGS["CHOOSE"]
STATE_FRESH = GATE_STATES["FRESH"]
STATE_ENTERED = GATE_STATES["ENTERED"]
STATE_PARKED = GATE_STATES["PARKED"]

_MAGIC_OFFSET = GATE.offset("magic")
_FIELDS = GATE.struct()
_DOOR_OFFSET = DOOR.offset("cr3_4level")
_DOOR_FIELDS = DOOR.struct()
_PAGE_LIST_ENTRY = PAGE_LIST.struct()


@dataclass(frozen=True)
class Gate:
    """The gate's fields, in the order of `layouts.GATE`.

    `flags` is FLAG_*; `cr3_4level` and `cr3_5level` are the roots of the identity tables; `peer_entry` and
    `peer_argument` start the peer (a kernel: its 64-bit entry and its boot_params). The gate fills in the `a_*` fields
    when A enters it, except `a_gdt_base` (a linear address in A) and `a_gdt_limit`, which A gives. `next_entry` is the
    address that A enters next time; `mailbox` and `cookie` are those of the mailbox for reports. `a_apic` is the local
    APIC id of the CPU on which A entered (filled in by the gate); `low_page` is a page of the peer below 1 MiB, through
    which the gate starts that CPU when another one panicked. `restore` is the address of a page list (`pack_page_list`)
    that the gate copies on the way back, before it enters A. The `b_*` fields are filled in when a resident peer leaves
    by its door; `switches` counts the entries of the peer.
    """

    flags: int = FLAG_INIT_CPUS
    cr3_4level: int = 0
    cr3_5level: int = 0
    peer_entry: int = 0
    peer_argument: int = 0
    state: int = STATE_FRESH
    a_entry: int = 0
    a_stack: int = 0
    a_cr0: int = 0
    a_cr3: int = 0
    a_cr4: int = 0
    a_efer: int = 0
    a_gdt_base: int = 0
    a_gdt_limit: int = 0
    next_entry: int = 0
    mailbox: int = 0
    cookie: bytes = bytes(16)
    tsc_in: int = 0
    tsc_out: int = 0
    a_apic: int = 0
    low_page: int = 0
    restore: int = 0
    b_entry: int = 0
    b_stack: int = 0
    b_gdt_base: int = 0
    b_gdt_limit: int = 0
    b_next_entry: int = 0
    switches: int = 0
    b_efer: int = 0

    def pack(self, code: bytes | None = None) -> bytes:
        """Return the gate, `GATE_SIZE` bytes: `code` (default: the x86_64 gate as built) with these fields."""
        binary = bytearray(gate_binary() if code is None else code)
        values = [getattr(self, f.name) for f in fields(self)]
        _FIELDS.pack_into(binary, _MAGIC_OFFSET, GATE_MAGIC, *values)
        return bytes(binary)

    @classmethod
    def unpack(cls, binary: bytes) -> Gate:
        """Read the fields of the gate in `binary`; FormatError when that is no gate."""
        if len(binary) < _MAGIC_OFFSET + _FIELDS.size:
            raise FormatError(f"a gate has {GATE_SIZE} bytes, not {len(binary)}")
        magic, *values = _FIELDS.unpack_from(binary, _MAGIC_OFFSET)
        if magic != GATE_MAGIC:
            raise FormatError("there is no kjump gate in these bytes (the magic is missing)")
        return cls(*values)


GATE.check(Gate, first="flags")


def gate_binary(bits: int = 64) -> bytes:
    """Return the x86_64 gate (`bits` 64) or the i386 one (32) as the build made it: `GATE_SIZE` bytes, fields zero."""
    return (Path(__file__).parent / f"gate{bits}.bin").read_bytes()


def door_binary() -> bytes:
    """Return the x86_64 door as the build made it: `DOOR_SIZE` bytes, fields zero."""
    return (Path(__file__).parent / "door64.bin").read_bytes()


@dataclass(frozen=True)
class Door:
    """The door's fields, in the order of `layouts.DOOR`.

    `cr3_4level` and `cr3_5level` are the roots of the gate's tables, `gate` is the physical address of GATE_SWITCH;
    `gdt_base` (a linear address in the second kernel) and `gdt_limit` are the second kernel's.
    """

    cr3_4level: int
    cr3_5level: int
    gate: int
    gdt_base: int
    gdt_limit: int

    def pack(self) -> bytes:
        """Return the door, `DOOR_SIZE` bytes."""
        binary = bytearray(door_binary())
        _DOOR_FIELDS.pack_into(binary, _DOOR_OFFSET, *(getattr(self, f.name) for f in fields(self)))
        return bytes(binary)


DOOR.check(Door)


def pack_page_list(runs: Iterable[tuple[int, int, int]]) -> bytes:
    """Return a page list (`layouts.PAGE_LIST`): runs of (address from, address to, pages), all physical.

    A run whose addresses both continue the run before is joined to it.
    """
    joined: list[tuple[int, int, int]] = []
    for source, destination, pages in runs:
        if joined:
            first, to, before = joined[-1]
            if (first + before * PAGE_SIZE, to + before * PAGE_SIZE) == (source, destination):
                joined[-1] = (first, to, before + pages)
                continue
        joined.append((source, destination, pages))
    return b"".join(_PAGE_LIST_ENTRY.pack(*run) for run in (*joined, (0, 0, 0)))


_PRESENT_WRITABLE = 0x3
_LARGE = 0x80
_ENTRIES = 512
_GIB = 1 << 30
_LARGE_PAGE = 2 << 20


def identity_tables_size(limit: int, *, huge: bool) -> int:
    """Return the size in bytes of the `identity_tables` that map the addresses from 0 up to `limit`."""
    gigabytes = align_up(limit, _GIB) // _GIB
    pointer_pages = align_up(gigabytes, _ENTRIES) // _ENTRIES
    return PAGE_SIZE * (2 + pointer_pages + (0 if huge else gigabytes))


def identity_tables(base: int, limit: int, *, huge: bool) -> bytes:
    """Return page tables for physical address `base` that map every address from 0 up to `limit` to itself.

    The first page is a PML5 and the second the PML4 it points to, so one set serves 4 and 5 levels of paging.
    With `huge` the leaves are 1 GiB pages (CPUs with pdpe1gb), else 2 MiB pages. ValueError for a `limit` over 256 TiB.
    """
    gigabytes = align_up(limit, _GIB) // _GIB
    pointer_pages = align_up(gigabytes, _ENTRIES) // _ENTRIES
    if pointer_pages > _ENTRIES:
        raise ValueError(f"identity tables reach 256 TiB, not {limit:#x}")

    def page_at(index: int) -> int:
        return base + index * PAGE_SIZE | _PRESENT_WRITABLE

    words = [0] * (identity_tables_size(limit, huge=huge) // 8)
    words[0] = page_at(1)
    for i in range(pointer_pages):
        words[_ENTRIES + i] = page_at(2 + i)
    for i in range(gigabytes):
        pointer = i * _GIB | _LARGE | _PRESENT_WRITABLE if huge else page_at(2 + pointer_pages + i)
        words[2 * _ENTRIES + i] = pointer
    if not huge:
        first = (2 + pointer_pages) * _ENTRIES
        for i in range(gigabytes * _ENTRIES):
            words[first + i] = i * _LARGE_PAGE | _LARGE | _PRESENT_WRITABLE
    return struct.pack(f"<{len(words)}Q", *words)
