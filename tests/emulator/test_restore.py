"""The gate puts A's pages in place on the way back, when a boot kernel has left them aside."""

import struct

import pytest
from emulated import machine_of

from kjump.call.machine import Loaded
from kjump.call.program import Arch
from kjump.emulator.linux import GDT_LIMIT, KERNELS
from kjump.gates import (
    GATE_WAY_BACK,
    Gate,
    identity_tables,
    identity_tables_size,
    pack_page_list,
)
from kjump.kexec.kimage import Shadow, kept_head, walk
from kjump.kexec.plan import ARCH_X86_64, PRESERVE_CONTEXT, Segment, make_plan
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

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


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_a_that_is_given_a_shorter_list_swaps_no_more_than_that(kernel: str) -> None:
    machine = machine_of(kernel)
    surface = machine.surface()
    held = machine.hold(PAGE_SIZE)
    gate_at, tables_at = HERE + 0x1000, HERE + 0x3000
    tables = identity_tables(tables_at, surface.memory_end, huge=False)
    home = tables_at + len(tables)
    gate = Gate(
        flags=0, cr3_5level=tables_at, cr3_4level=tables_at + PAGE_SIZE, peer_entry=HERE, next_entry=gate_at,
        a_gdt_base=surface.gdt_base, a_gdt_limit=GDT_LIMIT,
    )  # fmt: skip
    data = bytes(PAGE_SIZE) + gate.pack() + tables + b"B" * PAGE_SIZE
    plan = make_plan(gate_at, [Segment(HERE, len(data), data)], ARCH_X86_64 | PRESERVE_CONTEXT)
    linux = machine.linux
    before = linux.ram.read(HERE, len(data))
    loaded = Loaded(machine, "restore", plan, None)
    assert linux.image is not None
    image = linux.image
    kept = kept_head(linux.ram.read, image.control[0], image.head)
    assert kept, "one word of the control page is the head of the list"
    lent = Shadow(walk(linux.ram.read, image.head)).within(RangeSet([Range(HERE // PAGE_SIZE, home // PAGE_SIZE)]))
    head, lists = lent.indirection_list([Range.of_size(held.address // PAGE_SIZE, 1)])
    for address, content in lists.items():
        linux.ram.write(address, content)
    # The peer puts the new head in place, a page home, and takes the way back: movabs rcx, head; movabs rax, kept;
    # mov [rax], rcx; movabs rax, home; mov byte [rax], 'A'; movabs rax, gate; jmp rax.
    peer = b"\x48\xb9" + struct.pack("<Q", head) + b"\x48\xb8" + struct.pack("<Q", kept) + b"\x48\x89\x08"
    peer += b"\x48\xb8" + struct.pack("<Q", home) + b"\xc6\x00A"
    peer += b"\x48\xb8" + struct.pack("<Q", gate_at + GATE_WAY_BACK) + b"\xff\xe0"
    linux.ram.write(image.pairs[HERE], peer)
    machine.jump()
    after = linux.ram.read(HERE, len(data))
    assert after[: home - HERE] == before[: home - HERE], "what was lent has come back"
    assert after[home - HERE :] == b"A".ljust(PAGE_SIZE, b"B"), "what was put home has stayed"
    loaded.close()
