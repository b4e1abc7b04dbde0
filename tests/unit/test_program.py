"""Programs as Plans, the binary interface of calls, and what is refused."""

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kjump.emulator
import kjump.gates
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
from kjump.kexec.plan import ARCH_I386, ARCH_X86_64, PRESERVE_CONTEXT, SEGMENT_MAX, Segment
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

MIB = 1 << 20
GATES = Path(kjump.gates.__file__).parent
SURFACE = Surface(RangeSet([Range(0x1000, 0x9F000), Range(MIB, 64 * MIB)]), 4 << 30, False, 0xFFFF1000, 0x7F)
MOVABLE = Program(Arch.X86_64, 0x10, (Segment(0, 2 * PAGE_SIZE, b"\xc3" * 32, "p"),), "p", movable=True)
COOKIE = bytes(range(16))


def numbers(header: Path) -> dict[str, int]:
    found = re.findall(r"#define (\w+)\s+(0x[0-9a-f]+|\d+)\b", header.read_text())
    return {name: int(value, 0) for name, value in found}


def test_the_block_agrees_with_the_header() -> None:
    offsets = numbers(GATES / "call.h")
    names = ("flags", "entry", "gate", "stack", "mailbox")
    values = {name: 0x1000 + i for i, name in enumerate(names)}
    block = call.CallBlock(
        **values, cookie=COOKIE, in_address=0x2000, in_size=0x2001, out_address=0x2002, out_size=0x2003
    ).pack()
    assert len(block) == offsets["BLOCK_SIZE"] == call.BLOCK_SIZE
    assert block[:8] == call.BLOCK_MAGIC
    for name, value in values.items():
        assert struct.unpack_from("<Q", block, offsets[f"BLOCK_{name.upper()}"]) == (value,)
    assert block[offsets["BLOCK_COOKIE"] :][:16] == COOKIE
    in_and_out = [offsets[f"BLOCK_{n}"] for n in ("IN", "IN_SIZE", "OUT", "OUT_SIZE")]
    assert [struct.unpack_from("<Q", block, at)[0] for at in in_and_out] == [0x2000, 0x2001, 0x2002, 0x2003]


def test_requests_and_replies_agree_with_the_header() -> None:
    offsets = numbers(GATES / "call.h")
    page = call.encode_request(COOKIE, [1, -1], 2, 77, [0x5000, 0x6000])
    words = struct.unpack("<512Q", page)
    at = {name: words[offsets[f"MAILBOX_{name}"] // 8] for name in ("ARGS_COUNT", "POINTERS", "IN_LENGTH")}
    assert at == {"ARGS_COUNT": 2, "POINTERS": 2, "IN_LENGTH": 77}
    assert words[offsets["MAILBOX_ARGS"] // 8 :][:2] == (1, (1 << 64) - 1)
    assert words[offsets["MAILBOX_PAGES"] // 8 :][:2] == (0x5000, 0x6000)
    assert words[offsets["MAILBOX_PAGES_COUNT"] // 8] == 2
    reply = bytearray(page)
    names = ("VALUE", "OUT_LENGTH", "CALLS", "TSC_IN", "TSC_BEGIN", "TSC_END")
    for value, name in enumerate(names, 10):
        struct.pack_into("<Q", reply, offsets[f"MAILBOX_{name}"], value)
    struct.pack_into("<4Q", reply, offsets["MAILBOX_FAULT"], 15, 2, 0x1234, 0x5678)
    struct.pack_into("<Q", reply, 16, offsets["MAILBOX_OUTCOME_FAULTED"])
    found = call.decode_reply(bytes(reply), COOKIE)
    assert found == call.Reply(call.OUTCOME_FAULTED, 10, 11, 12, call.Fault(14, 2, 0x1234, 0x5678), 13, 14, 15)
    with pytest.raises(FormatError, match="overwritten"):
        call.decode_reply(bytes(reply), bytes(16))


def test_constants_agree_with_the_headers() -> None:
    of_calls, of_gates = numbers(GATES / "call.h"), numbers(GATES / "gate.h")
    assert of_calls["CALL_SHIM_SIZE"] == call.SHIM_SIZE
    assert of_calls["CALL_ARGS_MAX"] == call.ARGS_MAX
    assert of_calls["MAILBOX_OUTCOME_RETURNED"] == call.OUTCOME_RETURNED
    assert of_calls["CALL_PAGES_MAX"] == call.PAGES_MAX >= BUFFER_SIZE // PAGE_SIZE
    assert of_gates["GATE_FLAG_RESIDENT"] == FLAG_RESIDENT
    assert of_gates["GATE_FLAG_DESCRIPTORS"] == FLAG_DESCRIPTORS
    of_bios = numbers(GATES / "program" / "bios.h")
    assert (of_bios["BIOS_BUFFER"], of_bios["BIOS_BUFFER_SIZE"]) == (bios.BUFFER_ADDRESS, bios.BUFFER_SIZE)


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


def test_control_pages_agree_with_the_header() -> None:
    pytest.importorskip("unicorn")
    from kjump.emulator import linux

    header = numbers(Path(kjump.emulator.__file__).with_name("control.h"))
    order = ("VIRTUAL", "TABLES", "SWAP_PAGE", "HEAD", "START", "FLAGS", "PHYSICAL")
    at = linux._FIELDS_AT
    assert [header[f"CONTROL_{name}"] for name in order] == [at + 8 * i for i in range(len(order))]
    assert header["CONTROL_RELOCATE"] == linux._RELOCATE
    assert header["CONTROL_START"] == linux._START_AT
    assert header["A_STOP"] == linux._A_STOP
    flags = {k.flags for k in linux.KERNELS.values()}
    assert flags == {0, header["CONTROL_FLAG_PUSH_START"], header["CONTROL_FLAG_SS_FIRST"]}
