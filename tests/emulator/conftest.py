"""The emulator's ring: no privileges, no QEMU; a C compiler builds the programs that are called."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kjump.emulator.linux import KERNELS, Setup, Watch
from kjump.emulator.machine import EmulatedMachine
from kjump.kexec.compiler import compile_program
from kjump.kexec.program import Arch, Preserve, Program, from_flat

MIB = 1 << 20
EXAMPLES = Path(__file__).parents[2] / "examples"
Compile = Callable[..., Program]
Assemble = Callable[[str, Arch, int], Program]


def machine_of(kernel: str, memory: int = 16 * MIB, access: bool = True, **setup: object) -> EmulatedMachine:
    """A machine whose memory is full of noise, and which records what programs do with it."""
    made = Setup(KERNELS[kernel], memory=memory, filled=True, **setup)  # type: ignore[arg-type]
    return EmulatedMachine(made, Watch(access=access, time_limit=60))


def example(name: str, kernel: str, preserve: Preserve = Preserve.NOTHING) -> Program:
    """An example program, compiled for the kernel's architecture."""
    return compile_program(EXAMPLES / f"{name}.c", arch=KERNELS[kernel].arch, preserve=preserve)


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
