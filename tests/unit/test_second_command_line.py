"""What a second Linux is given on its command line."""

from __future__ import annotations

import pytest
from test_formats_bzimage import make

from kjump.errors import PlanError
from kjump.formats import bzimage, cmdline
from kjump.formats.e820 import RAM, E820Entry
from kjump.gates import Gate
from kjump.kexec.linux import LinuxPeer, Surroundings, elf_headers_size
from kjump.kexec.window import lay_out
from kjump.ranges import Range, RangeSet

MIB = 1 << 20
NOTE = b"OSRELEASE=6.12\n"


def command_line_of(line: str) -> str:
    """Return the command line in the window of a peer that was asked for with `line`."""
    ram = Range(MIB, 1 << 30)
    around = Surroundings(
        memory_map=(E820Entry(ram, RAM),),
        ram=RangeSet([ram]),
        low=Range(0x1000, 0x9F000),
        vmcoreinfo_note=NOTE,
        rsdp=0,
        huge=True,
        gate=Gate(),
    )
    size = elf_headers_size(around.ram, NOTE)
    layout = lay_out(Range.of_size(32 * MIB, 64 * MIB), elf_headers_size=size, memory_end=1 << 30, huge=True)
    peer = LinuxPeer(bzimage.parse(make(init_size=16 * MIB)), b"initrd", line, layout)
    segment = next(s for s in peer.segments(around, layout.gate) if s.name == "gate")
    at = layout.command_line - segment.address
    return cmdline.decode(segment.data[at : segment.data.index(b"\0", at)])


def test_where_the_memory_is_described_is_told_to_the_kernel_not_to_init() -> None:
    line = cmdline.parse(command_line_of("quiet motd=\udcff -- single"))
    assert [p.name for p in line.parameters] == ["quiet", "motd", "elfcorehdr"]
    assert [p.name for p in line.init_arguments] == ["single"]


def test_a_quote_that_would_swallow_it_is_refused() -> None:
    with pytest.raises(PlanError, match="a double quote is not closed"):
        command_line_of('quiet motd="')
