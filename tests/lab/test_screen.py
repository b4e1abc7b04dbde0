"""What a second kernel is told of the machine: it has the screen, and all of a memory map in many ranges."""

import time
from pathlib import Path

from kjump.lab.machine.installation import Installation
from kjump.lab.machine.qemu import VirtualMachine

TEXT_MEMORY, TEXT_SIZE = 0xB8000, 80 * 25 * 2
PATIENCE = 60


def screen(machine: VirtualMachine) -> str:
    """Return the characters in the text memory of the VGA."""
    path = Path(machine.folder, "screen")
    machine.execute("pmemsave", val=TEXT_MEMORY, size=TEXT_SIZE, filename=str(path))
    return path.read_bytes()[::2].decode("cp437")


def test_what_a_second_kernel_prints_is_on_the_screen(installation: Installation) -> None:
    kernel = f"/boot/vmlinuz-{installation.kernel.release}"
    with installation.machine(extra=("-device", "VGA")) as machine:
        guest = machine.guest
        guest.event("ready")
        assert "unable to mount root fs" not in screen(machine)
        # Neither root nor initramfs: it panics, and stays.
        guest.run("kjump", "load", kernel, "--append", "earlyprintk=vga,keep console=tty0 panic=0")
        guest.start("kjump", "exec")
        until = time.monotonic() + PATIENCE
        while "unable to mount root fs" not in (seen := screen(machine).lower()):
            assert time.monotonic() < until, seen
            time.sleep(1)


RANGES = 200
FIRST, STEP = 1 << 40, 2 << 20
LOAD = f"""
import sys
from kjump.cli import main
from kjump.formats.e820 import RESERVED, E820Entry
from kjump.host import procfs
from kjump.ranges import Range
true = procfs.firmware_memory_map()
more = [E820Entry(Range.of_size({FIRST} + n * {STEP}, {STEP} // 2), RESERVED) for n in range({RANGES})]
procfs.firmware_memory_map = lambda: (*true, *more)
main(["load", *sys.argv[1:]])
"""


def test_a_memory_map_that_boot_params_have_no_room_for(installation: Installation) -> None:
    kernel = f"/boot/vmlinuz-{installation.kernel.release}"
    with installation.machine() as machine:
        guest = machine.guest
        guest.event("ready")
        guest.run("python3", "-c", LOAD, kernel, "--append", "console=ttyS0 panic=0")
        guest.start("kjump", "exec")
        until = time.monotonic() + PATIENCE
        while "unable to mount root fs" not in (seen := machine.console().lower()):
            assert time.monotonic() < until, seen[-2000:]
            time.sleep(1)
    found = seen.partition("extended physical ram map:")[2]
    assert all(f"[mem {FIRST + n * STEP:#018x}-" in found for n in range(RANGES))
