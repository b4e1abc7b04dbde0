"""A file on A's root file system as the target: what is refused, and that it finds its way through two boots."""

from pathlib import Path

import pytest
from test_failures import assert_unharmed

from kjump.lab import hibernation
from kjump.lab.campaign.provocations import mark
from kjump.lab.hibernation import TARGET_FILE
from kjump.lab.machine import kernel_source as kernels
from kjump.lab.machine import rootfs
from kjump.lab.machine.installation import Hardware, Installation
from kjump.lab.machine.qemu import VirtualMachine

MIB = 1 << 20


@pytest.fixture
def roomy(folder: Path) -> Installation:
    """A machine whose root file system has room for an image."""
    hardware = Hardware(memory=640 * MIB, cpus=2)
    kernel = kernels.build("6.12")
    return Installation(folder, kernel, hardware, target_size=MIB, root_size=rootfs.SIZE + 512 * MIB).prepare()


def refused(machine: VirtualMachine, words: str, *command: str) -> None:
    reply = machine.guest.run("kjump", *command, check=False)
    assert reply.status == 1 and words in reply.stderr, reply.stderr
    assert reply.stderr.count("\n") == 1, reply.stderr


def test_a_file_as_target(roomy: Installation) -> None:
    with roomy.machine() as machine:
        guest = machine.guest
        guest.event("ready")
        mark(machine)
        refused(machine, "is on tmpfs", "target", "create", "/run/image", "64M")
        refused(machine, "No space left", "target", "create", "/var/huge", "100G")
        guest.run("sh", "-c", "truncate -s 64M /var/sparse; fallocate -l 64M /var/allocated; cp /etc/passwd /var/text")
        refused(machine, "has a hole", "hibernate", "--to", "/var/sparse")
        refused(machine, "is unwritten", "hibernate", "--to", "/var/allocated")
        refused(machine, "not a multiple", "hibernate", "--to", "/var/text")
        guest.run("rm", "/var/sparse", "/var/allocated", "/var/text")

        guest.run("kjump", "target", "create", "/var/small", "16M")
        guest.run("sh", "-c", "cp /var/small /var/moved; sync")
        refused(machine, "has moved", "hibernate", "--to", "/var/moved")
        small = guest.run("kjump", "hibernate", "--to", "/var/small", check=False)
        assert small.status == 1 and "writing the image" in small.stderr and "unharmed" in small.stderr
        assert_unharmed(machine)
        assert "the image was invalidated" in guest.run("kjump", "target", "show", "/var/small").stdout

        options = hibernation.make_target_file(guest, 448 * MIB)
        suspended = hibernation.suspend(machine, target=TARGET_FILE)

    with roomy.machine(options) as machine:
        resumed = hibernation.resume(machine, suspended.command)
        assert resumed.reply.status == 0
        assert_unharmed(machine)
        assert "consumed" in machine.guest.run("kjump", "target", "show", TARGET_FILE).stdout
        again = hibernation.suspend(machine, target=TARGET_FILE)
        assert again.command != suspended.command

    with roomy.machine(f"{options} kjump.noresume") as machine:
        assert "told not to resume" in machine.guest.event("not-resumed").details.text("reason")
        machine.guest.event("ready")
        assert "told not to resume" in machine.guest.run("kjump", "target", "show", TARGET_FILE).stdout
        machine.guest.run("rm", TARGET_FILE)
        machine.power_off()
    assert roomy.check_root_disk()[0]
