"""What the emulator's tests share: machines full of noise, and the example programs."""

from collections.abc import Callable
from pathlib import Path

from kjump.call.compiler import compile_program
from kjump.call.program import Arch, Preserve, Program
from kjump.emulator.linux import KERNELS, Setup, Watch
from kjump.emulator.machine import EmulatedMachine

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
