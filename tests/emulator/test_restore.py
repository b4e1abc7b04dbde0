"""The gate puts A's pages in place on the way back, when a boot kernel has left them aside."""

import struct

import pytest
from emulated import machine_of

from kjump.emulator.linux import GDT_LIMIT, KERNELS
from kjump.gates import (
    GATE_WAY_BACK,
    Gate,
    identity_tables,
    identity_tables_size,
    pack_page_list,
)
from kjump.kexec.machine import Loaded
from kjump.kexec.plan import ARCH_X86_64, PRESERVE_CONTEXT, Segment, make_plan
from kjump.kexec.program import Arch
from kjump.memory import PAGE_SIZE

HERE = 0x400000
KERNEL_NAMES = sorted(k for k in KERNELS if KERNELS[k].arch is Arch.X86_64)


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
@pytest.mark.parametrize("runs", [[], [(0, 4, 1)], [(0, 4, 2), (2, 7, 1), (3, 6, 1)]], ids=["none", "one", "more"])
def test_pages_are_put_in_place_before_a_goes_on(kernel: str, runs: list[tuple[int, int, int]]) -> None:
    machine = machine_of(kernel)
    surface = machine.surface()
    held = machine.hold(8 * PAGE_SIZE)
    for index in range(8):
        held.write(index * PAGE_SIZE, bytes([index + 1]) * PAGE_SIZE)
    listed = [(held.address + a * PAGE_SIZE, held.address + b * PAGE_SIZE, count) for a, b, count in runs]

    gate_at, list_at, tables_at = HERE + 0x1000, HERE + 0x3000, HERE + 0x4000
    tables = identity_tables(tables_at, surface.memory_end, huge=False)
    assert len(tables) == identity_tables_size(surface.memory_end, huge=False)
    gate = Gate(
        flags=0, cr3_5level=tables_at, cr3_4level=tables_at + PAGE_SIZE, peer_entry=HERE, next_entry=gate_at,
        a_gdt_base=surface.gdt_base, a_gdt_limit=GDT_LIMIT, restore=list_at,
    )  # fmt: skip
    # The peer, which stands for the boot kernel, takes the way back at once: movabs rax, ...; jmp rax.
    peer = b"\x48\xb8" + struct.pack("<Q", gate_at + GATE_WAY_BACK) + b"\xff\xe0"
    data = peer.ljust(PAGE_SIZE, b"\0") + gate.pack() + pack_page_list(listed).ljust(PAGE_SIZE, b"\0") + tables
    plan = make_plan(gate_at, [Segment(HERE, len(data), data)], ARCH_X86_64 | PRESERVE_CONTEXT)
    loaded = Loaded(machine, "restore", plan, None)
    machine.jump()
    expected = list(range(1, 9))
    for source, destination, count in runs:
        expected[destination : destination + count] = range(source + 1, source + 1 + count)
    for index, byte in enumerate(expected):
        page = machine.linux.ram.read(held.address + index * PAGE_SIZE, PAGE_SIZE)
        assert page == bytes([byte]) * PAGE_SIZE, f"page {index}"
    loaded.close()
