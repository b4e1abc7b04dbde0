"""Programs that go wrong: one sentence each, and a report that says where the machine was."""

import struct
from pathlib import Path

import pytest
from emulated import EXAMPLES, Compile, example, machine_of

from kjump.call.machine import FaultError
from kjump.cli import main
from kjump.cli.call import argument
from kjump.emulator.report import WildError
from kjump.errors import UsageError


def test_a_program_that_never_returns(compile_c: Compile) -> None:
    machine = machine_of("6.12")
    machine.linux.watch.time_limit = 0.2
    with machine.load(compile_c("for (;;) ;")) as loaded:
        with pytest.raises(WildError, match="did not come back") as wild:
            loaded.call()
        with pytest.raises(UsageError, match="make a new one"):
            loaded.call()
    text = "\n".join(wild.value.details)
    assert "jmp" in text
    assert f"RIP {machine.linux.cpu.pc:016x}" in text
    assert "last branches" in text


@pytest.mark.parametrize("access", [True, False])
@pytest.mark.parametrize("kernel", ["6.12", "1.00"])
def test_a_program_that_writes_over_the_page_tables_of_a(kernel: str, access: bool, compile_c: Compile) -> None:
    machine = machine_of(kernel, access=access)
    program = compile_c("memset((void *)(uintptr_t)args[0], 0, 4096); return 0;", kernel)
    with machine.load(program) as loaded:
        tables = machine.linux.tables[0]
        assert tables not in loaded.plan.destinations
        with pytest.raises(WildError, match=f"the program wrote the caller's page tables at {tables:#x}"):
            loaded.call(tables)


@pytest.mark.parametrize("kernel", ["6.12", "1.00"])
def test_a_program_that_touches_what_is_not_there(kernel: str, compile_c: Compile) -> None:
    program = compile_c("return *(volatile uint8_t *)(uintptr_t)args[0];", kernel)
    with (
        machine_of(kernel).load(program) as loaded,
        pytest.raises(WildError, match="tried to read at 0x40000000, where there is no memory"),
    ):
        loaded.call(0x40000000)


FAULTS = {
    "return 7 / args[0];": 0,
    '__asm__ volatile("ud2"); return 0;': 6,
    '__asm__ volatile("lidt (%0); ud2" :: "r"(args[0])); return 0;': None,
}


@pytest.mark.parametrize("kernel", ["6.12", "1.00"])
@pytest.mark.parametrize("body", list(FAULTS))
def test_an_exception_ends_the_function_and_not_the_machine(body: str, kernel: str, compile_c: Compile) -> None:
    if body.startswith("return 7") and kernel == "1.00":
        body = "return (uint32_t)7 / (uint32_t)args[0];"
    machine = machine_of(kernel)
    with machine.load(compile_c(body, kernel)) as loaded:
        vector = FAULTS.get(body, 0)
        if vector is None:  # it has taken the table of handlers away
            machine.linux.ram.write(0, bytes(16))
            with pytest.raises(WildError, match="invalid instruction"):
                loaded.call(0)
            return
        with pytest.raises(FaultError) as ended:
            loaded.call(0)
        fault = ended.value.fault
        assert fault.vector == vector
        assert fault.address in loaded.plan.segments[1].range
        assert "registers:" in ended.value.details
        assert machine.difference().unexplained == []
        assert machine.linux.image is not None
        assert machine.linux.image.start == loaded.plan.entry
        with pytest.raises(FaultError):
            loaded.call(0)


def test_a_page_fault_has_its_address(compile_c: Compile) -> None:
    program = compile_c("return *(volatile uint64_t *)(1ull << 40);")
    with machine_of("6.12").load(program) as loaded, pytest.raises(FaultError, match="page fault") as ended:
        loaded.call()
    assert (ended.value.fault.vector, ended.value.fault.memory) == (14, 1 << 40)


def exit_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["call", "--on", "emulator", *arguments])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize("arch", ["x86_64", "i386"])
def test_the_command_prints_what_a_function_returns(arch: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(capsys, "--arch", arch, str(EXAMPLES / "add.c"), "2", "40") == (0, "42\n", "")
    status, out, _ = exit_of(capsys, "--arch", arch, str(EXAMPLES / "counter.c"), "5", "--then", "7", "--then", "1 1")
    assert (status, out) == (0, "5\n12\n14\n")
    assert exit_of(capsys, "--arch", arch, str(EXAMPLES / "upper.c"), "word")[1] == "WORD\n4\n"


def elf_with(segments: list[tuple[int, bytes]]) -> bytes:
    """A small x86_64 executable whose PT_LOAD segments are given as (physical address, data)."""
    at = 64 + 56 * len(segments)
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, segments[0][0], 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    table, data = b"", b""
    for address, content in segments:
        table += struct.pack("<IIQQQQQQ", 1, 7, at + len(data), address, address, len(content), len(content), 4096)
        data += content
    return head + table + data


BAD_FILES = {
    "overlapping": (elf_with([(0x400000, b"\xc3" * 64), (0x400020, b"\xc3" * 64)]), "segments overlap"),
    "not an ELF": (b"#!/bin/sh\necho no\n", "not an ELF file"),
    "empty": (b"", "not an ELF file"),
    "cut off in the header": (elf_with([(0x400000, b"\xc3" * 64)])[:40], "cut off"),
    "cut off in the data": (elf_with([(0x400000, b"\xc3" * 64)])[:-10], "is cut off"),
    "no segments": (elf_with([(0x400000, b"")]), "nothing to load"),
}


@pytest.mark.parametrize("name", list(BAD_FILES))
def test_files_that_are_no_programs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, why = BAD_FILES[name]
    path = tmp_path / "program"
    path.write_bytes(data)
    status, out, err = exit_of(capsys, str(path))
    assert (status, out) == (1, "")
    assert why in err
    assert err.count("\n") == 1


def test_other_things_the_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "broken.c"
    source.write_text("int broken(\n")
    for arguments, expected, why in (
        ([str(source)], 1, "does not compile"),
        ([str(tmp_path / "absent.elf")], 2, "cannot read"),
        (["--kernel", "5.4", str(EXAMPLES / "add.c")], 2, "there is no emulated kernel 5.4"),
        (["--memory", "1M", str(EXAMPLES / "add.c")], 2, "from 8 to 512 MiB"),
        ([str(EXAMPLES / "mean.c")], 1, "--preserve fpu"),
    ):
        status, _, err = exit_of(capsys, *arguments)
        assert (status, err.count("\n")) == (expected, 1), err
        assert why in err


def test_a_wild_program_ends_the_command_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "forever.c"
    source.write_text('#include "kjump.h"\nuint64_t forever(const uint64_t *a, size_t n) { for (;;) ; }\n')
    status, out, err = exit_of(capsys, "--time-limit", "0.2", str(source))
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith("kjump: in the program the machine did not come back within 0.2 s")


def test_a_flat_binary_has_an_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "flat.bin"
    path.write_bytes(bytes.fromhex("488b07480faf4708c3"))  # mov (%rdi), %rax; imul 8(%rdi), %rax; ret
    assert exit_of(capsys, "--at", "0x600000", str(path), "6", "7") == (0, "42\n", "")
    status, _, err = exit_of(capsys, "--at", "0x600001", str(path), "6", "7")
    assert status == 1
    assert "not a multiple of 4096" in err


def test_words_that_cannot_be_split(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = exit_of(capsys, str(EXAMPLES / "add.c"), "2", "40", "--then", "it's 3")
    assert (status, out) == (2, "")
    assert err.splitlines() == ['kjump: --then "it\'s 3" cannot be split into words: No closing quotation']


def test_words_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"\0\1")
    words = ["12", "0x10", "-1", "word", "s:12", f"@{path}"]
    assert [argument(w) for w in words] == [12, 16, -1, b"word", b"12", b"\0\1"]


def test_example_programs_on_the_emulated_machine() -> None:
    machine = machine_of("6.12")
    with machine.load(example("memtest", "6.12")) as loaded:
        assert loaded.call(0x600000, 0x800).value == 0
    with machine.load(example("memhash", "6.12")) as loaded:
        first = loaded.call(0x600000, 0x100).value
        machine.linux.ram.write(0x600010, b"other")
        assert loaded.call(0x600000, 0x100).value != first
    with machine.load(example("cpu", "6.12")) as loaded:
        assert b"signature 0x" in loaded.call().output
    with machine.load(example("smi", "6.12")) as loaded:
        assert b"the longest:" in loaded.call(1).output
