"""Programs as Plans, the binary interface of calls, and what is refused."""

import struct
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.call import bios
from kjump.call.program import (
    BUFFER_SIZE,
    LOWEST,
    Arch,
    Preserve,
    Program,
    Surface,
    from_flat,
    in_memory,
    lay_out,
    plan_bare,
    plan_call,
)
from kjump.errors import FormatError, PlanError
from kjump.gates import FLAG_DESCRIPTORS, FLAG_RESIDENT, GATE_SIZE, Gate, call, gate_binary
from kjump.gates.layouts import BLOCK, CALL_MAILBOX, MAILBOX
from kjump.kexec.plan import ARCH_I386, ARCH_X86_64, PRESERVE_CONTEXT, SEGMENT_MAX, Segment
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

MIB = 1 << 20
SURFACE = Surface(RangeSet([Range(0x1000, 0x9F000), Range(MIB, 64 * MIB)]), 4 << 30, False, 0xFFFF1000, 0x7F)
MOVABLE = Program(Arch.X86_64, 0x10, (Segment(0, 2 * PAGE_SIZE, b"\xc3" * 32, "p"),), "p", movable=True)
COOKIE = bytes(range(16))


def test_the_block_is_as_its_layout_says() -> None:
    numbers = {f.name: 0x1000 + i for i, f in enumerate(fields(call.CallBlock)) if f.name != "cookie"}
    block = call.CallBlock(**numbers, cookie=COOKIE).pack()
    assert len(block) == call.BLOCK_SIZE
    assert block[:8] == call.BLOCK_MAGIC
    for name, value in numbers.items():
        assert struct.unpack_from("<Q", block, BLOCK.offset(name)) == (value,), name
    assert block[BLOCK.offset("cookie") :][:16] == COOKIE


def test_requests_and_replies_are_as_their_layout_says() -> None:
    at = CALL_MAILBOX.offset
    page = call.encode_request(COOKIE, [1, -1], 2, 77, [0x5000, 0x6000])
    words = struct.unpack("<512Q", page)
    assert [words[at(name) // 8] for name in ("args_count", "pointers", "in_length")] == [2, 2, 77]
    assert words[at("args") // 8 :][:2] == (1, (1 << 64) - 1)
    assert words[at("pages") // 8 :][:2] == (0x5000, 0x6000)
    assert words[at("pages_count") // 8] == 2
    reply = bytearray(page)
    for value, name in enumerate(("value", "out_length", "calls", "tsc_in", "tsc_begin", "tsc_end"), 10):
        struct.pack_into("<Q", reply, at(name), value)
    struct.pack_into("<4Q", reply, at("fault"), 15, 2, 0x1234, 0x5678)
    struct.pack_into("<Q", reply, MAILBOX.offset("outcome"), call.OUTCOME_FAULTED)
    found = call.decode_reply(bytes(reply), COOKIE)
    assert found == call.Reply(call.OUTCOME_FAULTED, 10, 11, 12, call.Fault(14, 2, 0x1234, 0x5678), 13, 14, 15)
    with pytest.raises(FormatError, match="overwritten"):
        call.decode_reply(bytes(reply), bytes(16))


def test_a_mailbox_has_room_for_the_pages_of_a_buffer() -> None:
    assert call.PAGES_MAX >= BUFFER_SIZE // PAGE_SIZE
    assert CALL_MAILBOX.end <= PAGE_SIZE


@pytest.mark.parametrize("bits", [32, 64])
def test_gates_and_shims_are_built_for_both_architectures(bits: int) -> None:
    assert len(gate_binary(bits)) == GATE_SIZE
    Gate.unpack(gate_binary(bits))
    shim = call.shim_binary(bits)
    assert len(shim) == call.SHIM_SIZE
    assert any(shim)


@pytest.mark.parametrize("arch", list(Arch))
def test_a_plan_puts_gate_shim_and_block_where_the_layout_says(arch: Arch) -> None:
    program = Program(arch, 0x10, MOVABLE.segments, "p", movable=True)
    layout, placed = lay_out(program, SURFACE)
    preserve = Preserve.FPU | Preserve.DESCRIPTORS
    plan = plan_call(placed, layout, SURFACE, mailbox=0x7000, cookie=COOKIE, preserve=preserve)
    assert plan.flags == PRESERVE_CONTEXT | (ARCH_X86_64 if arch is Arch.X86_64 else ARCH_I386)
    assert plan.entry == layout.base == LOWEST
    front, own = plan.segments
    gate = Gate.unpack(front.data)
    assert (gate.peer_entry, gate.peer_argument, gate.next_entry) == (layout.shim, layout.block, layout.base)
    assert (gate.mailbox, gate.cookie, gate.a_gdt_base) == (0x7000, COOKIE, 0xFFFF1000)
    assert gate.flags == FLAG_RESIDENT | FLAG_DESCRIPTORS
    block = front.data[layout.block - layout.base :]
    assert block[:8] == call.BLOCK_MAGIC
    assert struct.unpack_from("<QQ", block, 8) == (call.BLOCK_FLAG_FPU, placed.entry)
    assert own.address == layout.range.end
    assert placed.entry == own.address + 0x10
    assert (layout.tables_size > 0) is (arch is Arch.X86_64)


def test_a_gate_keeps_clear_of_a_program_with_fixed_addresses() -> None:
    fixed = from_flat(b"\xc3" * 5000, LOWEST, Arch.X86_64)
    layout, placed = lay_out(fixed, SURFACE)
    assert placed == fixed
    assert not layout.range.overlaps(fixed.range)
    plan = plan_call(placed, layout, SURFACE, mailbox=0, cookie=COOKIE, preserve=Preserve.NOTHING)
    assert len(plan.segments) == 2


def test_the_fake_image_is_one_empty_segment_not_at_zero() -> None:
    plan = plan_bare(in_memory(0x1234000, Arch.X86_64))
    assert plan.entry == 0x1234000
    assert [(s.address != 0, s.memory_size) for s in plan.segments] == [(True, 0)]


@given(
    words=st.lists(st.integers(0, 0xFF8 // 8), unique=True, max_size=20),
    at=st.integers(1, 1 << 20).map(lambda n: n * PAGE_SIZE),
)
def test_relocations_add_the_address_to_their_words_only(words: list[int], at: int) -> None:
    data = bytes(range(256)) * 15
    relocations = tuple((w * 8, w * 3) for w in words)
    program = Program(Arch.X86_64, 0, (Segment(0, PAGE_SIZE, data),), "p", True, relocations)
    moved = program.at(at).segments[0]
    assert moved.address == at
    expected = bytearray(data.ljust(PAGE_SIZE, b"\0"))
    for w in words:
        struct.pack_into("<Q", expected, w * 8, w * 3 + at)
    assert moved.data.ljust(PAGE_SIZE, b"\0") == expected


def test_what_cannot_be_moved_or_placed_is_refused() -> None:
    with pytest.raises(PlanError, match="fixed addresses"):
        from_flat(b"\xc3", 0x400000, Arch.X86_64).at(0x500000)
    with pytest.raises(PlanError, match="not a multiple"):
        from_flat(b"\xc3", 0x400010, Arch.X86_64)
    with pytest.raises(FormatError, match="empty"):
        from_flat(b"", 0x400000, Arch.X86_64)
    outside = Program(Arch.X86_64, 0, MOVABLE.segments, "p", True, ((0x10000, 0),))
    with pytest.raises(FormatError, match="relocation"):
        outside.at(PAGE_SIZE)
    small = Surface(RangeSet([Range(MIB, 2 * MIB + PAGE_SIZE)]), 4 << 30, False)
    with pytest.raises(PlanError, match="of free RAM between"):
        lay_out(MOVABLE, small)
    many = tuple(Segment(0x400000 + 2 * i * PAGE_SIZE, PAGE_SIZE, b"") for i in range(SEGMENT_MAX))
    crowded = Program(Arch.X86_64, 0x400000, many, "p")
    layout, placed = lay_out(crowded, SURFACE)
    with pytest.raises(PlanError, match="at most 16"):
        plan_call(placed, layout, SURFACE, mailbox=0, cookie=COOKIE, preserve=Preserve.NOTHING)


def test_the_bios_program_lies_within_reach_of_16_bit_code() -> None:
    program = bios.program()
    assert program.range.start >= 0x600
    assert program.range.end <= 0x10000
    assert Range.of_size(bios.BUFFER_ADDRESS, bios.BUFFER_SIZE).end <= program.range.end
