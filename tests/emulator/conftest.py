"""The emulator's ring: no privileges, no QEMU; a C compiler builds the programs that are called."""

import subprocess
from pathlib import Path

import pytest
from emulated import Assemble, Compile

from kjump.call.compiler import compile_program
from kjump.call.program import Arch, Preserve, Program, from_flat
from kjump.emulator.linux import KERNELS


@pytest.fixture
def compile_c(tmp_path: Path) -> Compile:
    """Compiles a function's body: `uint64_t program(const uint64_t *args, size_t n)`."""

    def compile_body(body: str, kernel: str = "6.12", preserve: Preserve = Preserve.NOTHING) -> Program:
        source = tmp_path / "program.c"
        text = "uint64_t program(const uint64_t *args, size_t n)\n{\n(void)args; (void)n;\n"
        source.write_text(f'#include "kjump.h"\n{text}{body}\n}}\n')
        return compile_program(source, arch=KERNELS[kernel].arch, preserve=preserve)

    return compile_body


@pytest.fixture
def assemble(tmp_path: Path) -> Assemble:
    """Assembles a flat program to lie at an address."""

    def flat(text: str, arch: Arch, at: int) -> Program:
        source, thing, binary = (tmp_path / f"flat.{end}" for end in ("S", "o", "bin"))
        source.write_text(text)
        subprocess.run(["gcc", f"-m{arch.bits}", "-c", str(source), "-o", str(thing)], check=True)
        subprocess.run(["objcopy", "-O", "binary", "-j", ".text", str(thing), str(binary)], check=True)
        return from_flat(binary.read_bytes(), at, arch)

    return flat
