"""Hibernation against the kernel's own: `python bench/hibernate.py [--rounds N] [--sizes 300,1024] ...`.

For each size (MiB in use beside the system) and kind of contents one machine is started and filled; then kjump
and swsusp save, switch off and bring back that same machine in turn, with the same kernel. swsusp has its best
case: a swap disk of its own, an image of any size, and a boot without initramfs, whose kernel resumes before it
starts a program. It is tried with LZO, its default, and with LZ4 (kernels from 6.9 on). kjump has its defaults, and
plays once more with a second kernel on standby (`kjump standby`), whose boot comes after the way back, not
before the save (the phase `again`, which `back` does not count), and with one that waits on disk, booted once.

All memory of the machine is backed by the host's before it is switched on, as that of a real one is there.
`save` is from the command to the power being off, `back` from power-on to the command's end, in seconds (medians
of the rounds); `disk` is the size of the image. Ratios are swsusp's numbers by kjump's: above 1 kjump is better.
Contents: `random` cannot be compressed; `programs` are programs and libraries of this machine, and a quarter zeros.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from core import make_sample
from kjump.lab import hibernation, swsusp
from kjump.lab.big_image import fill, make_random
from kjump.lab.guest.workload import digest
from kjump.lab.machine import kernel_source as kernels
from kjump.lab.machine.disks import make_disk
from kjump.lab.machine.installation import Hardware, Installation
from kjump.lab.machine.qemu import VirtualMachine

MIB = 1 << 20
SWAP_DEVICE = "/dev/vdd"
KJUMP, STANDBY, ON_DISK, LZO, LZ4 = "kjump", "kjump standby", "kjump on disk", "swsusp lzo", "swsusp lz4"
SWSUSP = (LZO, LZ4)
CONTESTANTS = (KJUMP, STANDBY, ON_DISK, *SWSUSP)
STANDING_BY = {STANDBY: hibernation.STANDING_BY["memory"], ON_DISK: hibernation.STANDING_BY["disk"]}
Numbers = dict[str, float]
"""save, back (seconds), disk, memory (bytes), and the parts of the time."""


def make_programs(path: Path, size: int) -> str:
    """Write `size` bytes of programs, libraries and zeros; return their digest as the workload makes it."""
    make_sample(path, size)
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as content:
        return digest(content)


CONTENTS: dict[str, Callable[[Path, int], str]] = {"random": make_random, "programs": make_programs}


class Contest:
    """One machine, saved and brought back by one contestant after the other."""

    def __init__(self, folder: Path, version: str, kind: str, size: int, names: list[str], options: list[str]) -> None:
        """Make the disks of a machine in which `size` bytes of that kind will be in use, for the contestants `names`.

        `options` go to `kjump hibernate`.
        """
        kernel = kernels.build(version)
        # Room for swsusp's copy of all that is in use, and some.
        hardware = Hardware(memory=max(1024 * MIB, size * 5 // 2 + 512 * MIB) // MIB * MIB)
        source, swap = folder / "source.img", folder / "swap.img"
        self.size, self.expected = size, CONTENTS[kind](source, size)
        make_disk(swap, hardware.memory)
        self.disks = (source, swap)
        self.installation = Installation(folder, kernel, hardware, hardware.memory + 64 * MIB).prepare()
        self.numbers: dict[str, list[Numbers]] = {name: [] for name in names}
        self.options = options

    def play(self, rounds: int) -> dict[str, list[Numbers]]:
        """Let the contestants take turns; return what each came to."""
        turns = [name for _ in range(rounds) for name in self.numbers]
        with contextlib.ExitStack() as stack:
            machine = stack.enter_context(self._machine())
            machine.guest.event("ready", timeout=120)
            fill(machine.guest, self.size, self.expected)
            for name in turns:
                print(f"    {name}", file=sys.stderr, flush=True)
                turn = self._swsusp if name in SWSUSP else self._kjump
                machine = turn(name, machine, stack)
            account = hibernation.verify_workload(machine.guest)
            if not account.ok:
                raise SystemExit(f"the machine came back damaged: {', '.join(account.failed)}")
        return self.numbers

    def _machine(self) -> VirtualMachine:
        machine = self.installation.machine(more_disks=self.disks)
        return VirtualMachine(replace(machine.config, preallocate=True), log=machine.log)

    def _kjump(self, name: str, machine: VirtualMachine, stack: contextlib.ExitStack) -> VirtualMachine:
        standing_by = STANDING_BY.get(name)
        if standing_by:
            machine.guest.run(*standing_by, timeout=120)
        saved = hibernation.suspend(machine, *self.options, standby=standing_by is not None)
        stack.pop_all().close()
        machine = stack.enter_context(self._machine())
        resumed = hibernation.resume(machine, saved.command)
        if resumed.reply.status:
            raise SystemExit(f"kjump came back with {resumed.reply.status}: {resumed.reply.stderr}")
        if standing_by:
            machine.guest.run("kjump", "standby", "--off")
        details = saved.saved.details
        phases = hibernation.phases(saved, machine, resumed)
        self.numbers[name].append(
            {
                "save": saved.off - saved.asked,
                "back": resumed.reply.time - machine.started - phases["again"],
                "disk": details.integer("image_bytes"),
                "memory": details.integer("kept_bytes"),
                **{f"phase {n}": seconds for n, seconds in phases.items()},
            }
        )
        return machine

    def _swsusp(self, name: str, machine: VirtualMachine, stack: contextlib.ExitStack) -> VirtualMachine:
        swsusp.prepare(machine.guest, SWAP_DEVICE, name.split()[1])
        saved = swsusp.suspend(machine)
        stack.pop_all().close()
        machine = stack.enter_context(swsusp.resuming_machine(self._machine(), SWAP_DEVICE))
        resumed = swsusp.resume(machine, saved.command)
        swsusp.finish(machine.guest, SWAP_DEVICE)
        self.numbers[name].append(
            {
                "save": saved.seconds,
                "back": resumed.seconds,
                "disk": saved.image_bytes,
                "memory": saved.memory_bytes,
                "write": saved.write_seconds,
                "read": resumed.read_seconds,
            }
        )
        return machine


def medians(rounds: list[Numbers]) -> Numbers:
    """Return the median of each number over the rounds."""
    return {name: statistics.median(numbers[name] for numbers in rounds) for name in rounds[0]}


def show(title: str, results: dict[str, Numbers]) -> None:
    """Print a case: seconds, sizes, where the time goes, and how swsusp compares with each of ours."""
    print(f"\n{title}\n{'':<14}{'save s':>8}{'back s':>8}{'disk MiB':>10}{'of MiB':>8}")
    for name, numbers in results.items():
        print(
            f"{name:<14}{numbers['save']:>8.1f}{numbers['back']:>8.1f}{numbers['disk'] / MIB:>10.0f}"
            f"{numbers['memory'] / MIB:>8.0f}"
        )
    for name, numbers in results.items():
        if name in SWSUSP:
            rest = (numbers["save"] - numbers["write"], numbers["back"] - numbers["read"])
            print(
                f"  {name}: freeze, copy, off {rest[0]:.1f}, write {numbers['write']:.1f}; "
                f"boot, thaw {rest[1]:.1f}, read {numbers['read']:.1f}"
            )
        else:
            print(f"  {name}: " + ", ".join(f"{phase} {numbers[f'phase {phase}']:.1f}" for phase in hibernation.PHASES))
    for name, ours in results.items():
        for other in SWSUSP:
            if name not in SWSUSP and other in results:
                ratios = ", ".join(
                    f"{what} {results[other][what] / ours[what]:.2f}" for what in ("save", "back", "disk")
                )
                print(f"  {other} by {name}: {ratios}")
    sys.stdout.flush()


def main() -> None:
    """Run all cases, each in a directory of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", default="6.12")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", default="300,1024", help="MiB in use")
    parser.add_argument("--contents", default="random,programs")
    parser.add_argument("--contestants", default=",".join(CONTESTANTS))
    parser.add_argument("--options", default="", help="for `kjump hibernate`")
    options = parser.parse_args()
    names = options.contestants.split(",")
    unknown = [*(set(names) - {*CONTESTANTS}), *(set(options.contents.split(",")) - {*CONTENTS})]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join((*CONTESTANTS, *CONTENTS))}")
    print(f"hibernation against swsusp, Linux {options.kernel}, {os.cpu_count()} cores, {options.rounds} rounds")
    for size in map(int, options.sizes.split(",")):
        for kind in options.contents.split(","):
            title = f"{size} MiB of {kind} in use"
            print(f"  {title}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="kjump-bench-") as folder:
                contest = Contest(Path(folder), options.kernel, kind, size * MIB, names, options.options.split())
                numbers = contest.play(options.rounds)
            show(title, {name: medians(rounds) for name, rounds in numbers.items()})


if __name__ == "__main__":
    main()
