"""A machine without a serial console: what a second kernel prints is on the screen."""

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
