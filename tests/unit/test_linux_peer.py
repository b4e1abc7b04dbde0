"""A second Linux as a Plan: where it may run, and what it is told of the machine."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_formats_bzimage import make

from kjump.errors import PlanError
from kjump.formats import bzimage
from kjump.formats.e820 import RAM, RESERVED, E820Entry
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


def plan(layout: WindowLayout, memory_map: tuple[E820Entry, ...] = (), line: str = "", **fields: int) -> Plan:
    around = Surroundings(memory_map, RAM_RANGES, LOW, b"", 0, True, Gate())
    kernel = bzimage.parse(make(**fields))
    return LinuxPeer(kernel, bytes(5 * MIB), line, layout).plan(around, preserve=True)


def runs_at(load: int, preferred: int, alignment: int) -> int:
    """Where Documentation/arch/x86/boot.rst says that a relocatable kernel runs, by trying one address after the other."""
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
    fields = {"pref_address": preferred, "kernel_alignment": alignment, "init_size": init_size}
    if at + init_size <= initrd_at:
        segments = {s.name: s for s in plan(layout, **fields).segments}
        assert segments["kernel"].range.covers(Range.of_size(at, init_size))
        assert segments["initrd"].address == initrd_at
        return
    with pytest.raises(PlanError):
        plan(layout, **fields)


def test_a_kernel_that_moves_out_of_the_window_is_refused_with_what_to_do() -> None:
    elsewhere = {"pref_address": 256 * MIB}
    why = "moves itself to .0x10000000-0x107fffff., out of the window .*: begin the window at 0x10000000, or take"
    with pytest.raises(PlanError, match=why):
        plan(window(32 * MIB, 96 * MIB), **elsewhere)
    with pytest.raises(PlanError, match=why):
        second_kernel.require_room(bzimage.parse(make(**elsewhere)), b"", window(32 * MIB, 96 * MIB))
    plan(window(256 * MIB, 96 * MIB), **elsewhere)
    second_kernel.require_room(bzimage.parse(make(**elsewhere)), b"", window(256 * MIB, 96 * MIB))
