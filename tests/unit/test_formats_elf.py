from __future__ import annotations

import io
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import damaged, survives

from kjump.errors import FormatError
from kjump.formats import elf, notes
from kjump.formats.elf import CoreLoad
from kjump.ranges import Range

NOTES = notes.encode([notes.Note("VMCOREINFO", 0, b"OSRELEASE=6.12\n")])
LOADS = [CoreLoad(0x1000, 0xFFFF888000001000, 0x9E000), CoreLoad(0x100000, 0xFFFF888000100000, 5000)]

loads_strategy = st.lists(
    st.builds(CoreLoad, st.integers(0, 2**52), st.integers(0, 2**64 - 1), st.integers(0, 2**40)), max_size=8
)


def core32() -> bytes:
    """A 32-bit core whose program headers come last, with an e_ehsize that is nonsense."""
    head = b"\x7fELF\x01\x01\x01" + bytes(9)
    head += struct.pack("<HHIIIIIHHHHHH", 4, 3, 1, 0, 0x80, 0, 0, 8, 32, 2, 0, 0, 0)
    head += bytes(0x80 - len(head))
    return head + struct.pack("<16I", 4, 0x40, 0, 0, 8, 8, 0, 0, 1, 0x1000, 0xC0001000, 0x1000, 16, 32, 7, 4096)


def with_many_loads(count: int) -> bytes:
    return elf.core_headers([CoreLoad(i * 8192, 0, 4096) for i in range(count)], NOTES)[0]


@given(loads_strategy, st.binary(max_size=200), st.sampled_from([elf.EM_386, elf.EM_X86_64]))
def test_what_is_written_is_read_back(loads: list[CoreLoad], note_bytes: bytes, machine: int) -> None:
    head, offsets = elf.core_headers(loads, note_bytes, machine=machine)
    core = elf.parse(head)
    assert (core.header.type, core.header.machine, core.header.bits) == (elf.ET_CORE, machine, 64)
    assert [(p.paddr, p.vaddr, p.filesz) for p in core.loads] == [(x.paddr, x.vaddr, x.size) for x in loads]
    assert [p.offset for p in core.loads] == offsets
    assert all(p.memsz == p.filesz for p in core.program_headers)
    (note,) = core.notes
    assert head[note.data.start : note.data.end] == note_bytes


@given(loads_strategy, st.sampled_from([4096, 65536]))
def test_data_are_aligned_and_do_not_overlap(loads: list[CoreLoad], align: int) -> None:
    head, offsets = elf.core_headers(loads, NOTES, align=align)
    ends = [len(head)] + [at + load.size for at, load in zip(offsets, loads, strict=True)]
    assert len(head) % align == 0
    for at, end in zip(offsets, ends, strict=False):
        assert at % align == 0
        assert 0 <= at - end < align


@pytest.mark.parametrize("count", [65533, 65534, 65535, 70000])
def test_more_program_headers_than_the_header_can_count(count: int) -> None:
    head = with_many_loads(count)
    (phnum,) = struct.unpack_from("<H", head, 56)
    assert phnum == min(count + 1, elf.PN_XNUM)
    core = elf.parse(head)
    assert len(core.loads) == count
    assert head[core.notes[0].data.start : core.notes[0].data.end] == NOTES


def test_the_true_count_can_be_fetched_step_by_step() -> None:
    head = with_many_loads(65534)
    header = elf.parse_header(head[:64])
    where = header.section_zero
    assert where is not None
    with pytest.raises(FormatError, match="section header 0"):
        _ = header.table
    header = elf.with_section_zero(header, head[where.start : where.end])
    assert header.phnum == 65535
    assert len(elf.parse_program_headers(header, head[header.table.start : header.table.end])) == 65535


def test_program_headers_of_32_bits_anywhere_in_the_file() -> None:
    core = elf.parse(core32())
    assert (core.header.bits, core.header.machine) == (32, elf.EM_386)
    (load,) = core.loads
    assert (load.paddr, load.vaddr, load.filesz, load.memsz, load.flags) == (0x1000, 0xC0001000, 16, 32, 7)
    assert load.physical == Range(0x1000, 0x1010)
    assert core.notes[0].data == Range(0x40, 0x48)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an ELF file"),
        (b"MZ" + bytes(100), "not an ELF file"),
        (b"\x7fELF\x02\x01\x01", "cut off"),
        (b"\x7fELF\x02\x02\x01" + bytes(60), "little endian"),
        (b"\x7fELF\x03\x01\x01" + bytes(60), "unknown class"),
        (elf.core_headers(LOADS, NOTES)[0][:100], "cut off in program headers"),
    ],
)
def test_what_is_refused_and_why(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        elf.parse(data)


def test_a_count_that_lies_takes_no_memory() -> None:
    head = bytearray(elf.core_headers(LOADS, NOTES)[0])
    struct.pack_into("<H", head, 56, elf.PN_XNUM)
    struct.pack_into("<Q", head, 40, 128)
    head[128:192] = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, 0xFFFFFFFF, 0, 0)
    survives(elf.parse, bytes(head))
    with pytest.raises(FormatError, match="program headers"):
        elf.parse(bytes(head))


@given(damaged(elf.core_headers(LOADS, NOTES)[0]))
def test_damaged_64(data: bytes) -> None:
    survives(elf.parse, data)


@given(damaged(core32()))
def test_damaged_32(data: bytes) -> None:
    survives(elf.parse, data)


@pytest.mark.skipif(not shutil.which("readelf"), reason="no readelf: install binutils to run this")
@pytest.mark.parametrize("count", [2, 65540])
def test_readelf_agrees(tmp_path: Path, count: int) -> None:
    core = tmp_path / "core"
    loads = [CoreLoad(i * 8192, 0xFFFF888000000000 + i * 8192, 4096) for i in range(count)]
    head, offsets = elf.core_headers(loads, NOTES)
    core.write_bytes(head)
    with core.open("r+b") as file:
        file.truncate(offsets[-1] + 4096)
    done = subprocess.run(["readelf", "-hlnW", core], capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("  LOAD")]
    assert [[int(word, 16) for word in row[1:5]] for row in rows] == [
        [at, load.vaddr, load.paddr, load.size] for at, load in zip(offsets, loads, strict=True)
    ]
    assert "CORE (Core file)" in done.stdout
    assert "VMCOREINFO" in done.stdout
    assert not done.stderr


def test_pyelftools_agrees() -> None:
    elffile = pytest.importorskip("elftools.elf.elffile", reason="no pyelftools: pip install it to run this")
    for data in (elf.core_headers(LOADS, NOTES)[0], core32()):
        theirs = elffile.ELFFile(io.BytesIO(data))
        ours = elf.parse(data)
        assert theirs.elfclass == ours.header.bits
        for segment, header in zip(theirs.iter_segments(), ours.program_headers, strict=True):
            for name in ("offset", "vaddr", "paddr", "filesz", "memsz", "flags", "align"):
                assert segment[f"p_{name}"] == getattr(header, name)
