"""How fast calls are: `python bench/emulator.py [KERNEL]`.

On the emulated machine: pages swapped a second, in both directions, beside three plain copies of as many pages (which
is what a swap is), and a whole call. With a kernel version, in a virtual machine on that kernel: the round trip of a
jump, split into our part (gate, shim, function) and the kernel's (devices, CPUs, processes, page swap).
"""

from __future__ import annotations

import ctypes
import statistics
import sys
import tempfile
import time
from pathlib import Path

from kjump.call.compiler import compile_program
from kjump.emulator.linux import KERNELS, Setup, Watch
from kjump.emulator.machine import EmulatedMachine
from kjump.kexec.plan import PRESERVE_CONTEXT, Plan, Segment
from kjump.memory import PAGE_SIZE

RUNS = 5
ADD = Path(__file__).parents[1] / "examples" / "add.c"
PAGES = 6000
RET = b"\xc3"


def swap_rate(kernel: str) -> float:
    """Return pages swapped a second: a jump to a `ret` in the last page swaps PAGES pages, there and back."""
    kind = KERNELS[kernel]
    machine = EmulatedMachine(Setup(kind, memory=64 << 20), Watch(branches=False))
    size = PAGES * PAGE_SIZE
    plan = Plan(0x400000, (Segment(0x400000, size, RET),), kind.arch.flag | PRESERVE_CONTEXT)
    machine.load_plan(plan)
    rates = []
    for _ in range(RUNS):
        machine.jump()
        times = machine.linux.times
        rates.append(2 * PAGES / (times.out + times.back))
    return max(rates)


def copy_rate() -> float:
    """Return pages a second that three plain copies (memmove) of each swap, in the order of a swap."""
    left, right, spare = (ctypes.create_string_buffer(PAGES * PAGE_SIZE) for _ in range(3))
    places = [(ctypes.addressof(left) + o, ctypes.addressof(right) + o) for o in range(0, len(left) - 1, PAGE_SIZE)]
    third = ctypes.addressof(spare)
    rates = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        for one, other in places:
            ctypes.memmove(third, one, PAGE_SIZE)
            ctypes.memmove(one, other, PAGE_SIZE)
            ctypes.memmove(other, third, PAGE_SIZE)
        rates.append(PAGES / (time.perf_counter() - begun))
    return max(rates)


def call_times(kernel: str) -> list[float]:
    """Return the seconds of some calls of examples/add.c."""
    kind = KERNELS[kernel]
    program = compile_program(ADD, arch=kind.arch)
    seconds = []
    with EmulatedMachine(Setup(kind)).load(program) as loaded:
        for number in range(50):
            begun = time.perf_counter()
            loaded.call(number)
            seconds.append(time.perf_counter() - begun)
    return seconds


def on_a_kernel(version: str) -> None:
    """Print the round trip of a jump on a real kernel in a virtual machine."""
    from kjump.lab import calling
    from kjump.lab.machine.installation import Hardware

    with tempfile.TemporaryDirectory(prefix="kjump-bench-") as folder:
        demo = calling.run(Path(folder), version=version, hardware=Hardware(512 << 20, 2), calls=50)
    whole, ours = demo.latency["median"], demo.latency["ours_median"]
    print(f"jump round trip, Linux {demo.kernel}, median of 50      {whole * 1e3:9.1f} ms")
    print(f"  gate, shim and function                       {ours * 1e3:9.3f} ms")
    print(f"  the kernel: devices, CPUs, processes, swap    {(whole - ours) * 1e3:9.1f} ms")


def main() -> None:
    """Run it all."""
    plain = copy_rate()
    print(f"three plain copies of a page                    {plain:9.0f} pages/s")
    for kernel in ("6.14", "1.00"):  # before 6.14 a plain `ret` would lose the entry
        rate = swap_rate(kernel)
        print(f"emulated page swap, kernel {kernel:<20} {rate:9.0f} pages/s ({rate / plain:.1%} of the copies)")
        seconds = call_times(kernel)
        print(f"emulated call of add, kernel {kernel:<18} {statistics.median(seconds) * 1e3:9.1f} ms (median of 50)")
    for version in sys.argv[1:]:
        on_a_kernel(version)


if __name__ == "__main__":
    main()
