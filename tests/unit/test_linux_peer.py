"""A second Linux as a Plan: where it may run, and what it is told of the machine."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_formats_bzimage import make

from kjump.errors import PlanError
from kjump.formats import bootparams, bzimage, e820
from kjump.formats.e820 import NVS, RAM, RESERVED, E820Entry
from kjump.gates import Gate
from kjump.kexec import second_kernel
from kjump.kexec.linux import LinuxPeer, Surroundings
from kjump.kexec.plan import Plan
from kjump.kexec.window import WindowLayout, lay_out
from kjump.ranges import Range, RangeSet

MIB = 1 << 20
LOW = Range(0x1000, 0x9F000)
RAM_RANGES = RangeSet([LOW, Range(MIB, 3 << 30)])


def window(start: int, size: int) -> WindowLayout:
    return lay_out(Range.of_size(start, size), elf_headers_size=4096, memory_end=4 << 30, huge=True)


def plan(
    layout: WindowLayout, memory_map: tuple[E820Entry, ...] = (), line: str = "", screen: bytes = b"", **fields: int
) -> Plan:
    around = Surroundings(memory_map, RAM_RANGES, LOW, b"", 0, True, Gate(), screen_info=screen)
    kernel = bzimage.parse(make(**fields))
    return LinuxPeer(kernel, bytes(5 * MIB), line, layout).plan(around, preserve=True)


def runs_at(load: int, preferred: int, alignment: int) -> int:
    """Where Documentation/arch/x86/boot.rst says that a relocatable kernel runs, found by trying."""
    at = load // alignment * alignment
    while at < load or at < preferred:
        at += alignment
    return at


@given(
    start=st.integers(8, 400).map(lambda n: n * 2 * MIB),
    size=st.integers(32, 192).map(lambda n: n * MIB),
    preferred=st.integers(1, 1000).map(lambda n: n * MIB),
    alignment=st.integers(21, 28).map(lambda n: 1 << n),
    init_size=st.integers(1, 160 * MIB),
)
def test_a_kernel_runs_inside_its_window_or_is_refused(
    start: int, size: int, preferred: int, alignment: int, init_size: int
) -> None:
    layout = window(start, size)
    at = runs_at(start, preferred, alignment)
    initrd_at = (layout.gate - 5 * MIB) // 4096 * 4096
    fields: Any = {"pref_address": preferred, "kernel_alignment": alignment, "init_size": init_size}
    if at + init_size <= initrd_at:
        segments = {s.name: s for s in plan(layout, **fields).segments}
        assert segments["kernel"].range.covers(Range.of_size(at, init_size))
        assert segments["initrd"].address == initrd_at
        return
    with pytest.raises(PlanError):
        plan(layout, **fields)


def test_a_kernel_that_moves_out_of_the_window_is_refused_with_what_to_do() -> None:
    elsewhere: Any = {"pref_address": 256 * MIB}
    why = "moves itself to .0x10000000-0x107fffff., out of the window .*: begin the window at 0x10000000, or take"
    with pytest.raises(PlanError, match=why):
        plan(window(32 * MIB, 96 * MIB), **elsewhere)
    with pytest.raises(PlanError, match=why):
        second_kernel.require_room(bzimage.parse(make(**elsewhere)), b"", window(32 * MIB, 96 * MIB))
    plan(window(256 * MIB, 96 * MIB), **elsewhere)
    second_kernel.require_room(bzimage.parse(make(**elsewhere)), b"", window(256 * MIB, 96 * MIB))


def told(layout: WindowLayout, plan: Plan) -> list[E820Entry]:
    """The memory map that the kernel of `plan` finds, as parse_setup_data() and e820__memory_setup() read it."""
    gate = next(s for s in plan.segments if s.name == "gate")

    def at(address: int, size: int) -> bytes:
        start = address - gate.address
        assert 0 <= start <= start + size <= layout.elf_headers - gate.address
        return gate.data[start : start + size]

    params = bootparams.parse(at(layout.boot_params, 4096))
    found, node = list(params.e820), params.setup_data
    assert params.cmdline_address < node < layout.elf_headers or not node
    while node:
        following, kind, length = struct.unpack("<QII", at(node, 16))
        assert kind == 1
        found += e820.unpack(at(node + 16, length))
        node = following
    return found


def test_ranges_of_one_type_are_joined() -> None:
    pieces = [E820Entry(Range.of_size((4 << 30) + n * MIB, MIB), RESERVED) for n in range(300)]
    found = told(layout := window(32 * MIB, 96 * MIB), plan(layout, (E820Entry(Range(MIB, 3 << 30), RAM), *pieces)))
    assert E820Entry(Range.of_size(4 << 30, 300 * MIB), RESERVED) in found
    assert len(found) == 5


@pytest.mark.parametrize("count", [120, 122, 123, 200])
def test_more_ranges_than_boot_params_hold_follow_in_setup_data(count: int) -> None:
    pieces = [E820Entry(Range.of_size((4 << 30) + 2 * n * MIB, MIB), NVS) for n in range(count)]
    layout = window(32 * MIB, 96 * MIB)
    found = told(layout, plan(layout, (E820Entry(Range(MIB, 3 << 30), RAM), *pieces), "quiet " * 300))
    assert [e for e in found if e.type == NVS] == pieces
    assert RangeSet(e.range for e in found if e.type == RAM) == RangeSet([LOW, layout.usable])


def test_more_ranges_than_there_is_room_for_are_refused() -> None:
    pieces = tuple(E820Entry(Range.of_size((4 << 30) + 2 * n * MIB, MIB), NVS) for n in range(400))
    with pytest.raises(PlanError, match="has 404 ranges, more than there is room for"):
        plan(window(32 * MIB, 96 * MIB), (E820Entry(Range(MIB, 3 << 30), RAM), *pieces))


def _boot_params(layout: WindowLayout, plan: Plan) -> bytes:
    gate = next(s for s in plan.segments if s.name == "gate")
    return gate.data[layout.boot_params - gate.address :][:4096]


EFI_SCREEN = struct.pack("<BBH11xB", 0, 24, 0xFC00, 0x70).ljust(64, b"\x5a")
"""A frame buffer of EFI (orig_video_isVGA at 0x0f is 0x70), and a size of memory at 2."""


def test_the_screen_is_handed_on_but_no_size_of_memory() -> None:
    page = _boot_params(layout := window(32 * MIB, 96 * MIB), plan(layout, screen=EFI_SCREEN))
    assert page[2:4] == bytes(2)
    assert page[:2] + EFI_SCREEN[2:4] + page[4:64] == EFI_SCREEN
    assert bootparams.parse(page).screen_info[4:] == EFI_SCREEN[4:]


def test_no_memory_and_no_efi_of_the_first_kernel_is_told() -> None:
    page = _boot_params(layout := window(32 * MIB, 96 * MIB), plan(layout, screen=EFI_SCREEN))
    assert page[0x1E0:0x1E4] == bytes(4)  # alt_mem_k
    assert page[0x1C0:0x1E0] == bytes(32)  # efi_info


@pytest.mark.parametrize("screen", [b"", bytes(10)])
def test_a_kernel_that_does_not_show_its_screen(screen: bytes) -> None:
    assert not any(_boot_params(layout := window(32 * MIB, 96 * MIB), plan(layout, screen=screen))[:64])
