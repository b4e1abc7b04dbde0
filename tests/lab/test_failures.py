"""Failures provoked for real: the reason is said, and nothing is lost. All of them: `lab/campaign/catalogue.py`."""

from pathlib import Path

from kjump.formats.superblock import SUPERBLOCK_SIZE, State, Superblock
from kjump.lab import hibernation
from kjump.lab.campaign import campaign, catalogue, provocations
from kjump.lab.campaign.campaign import Campaign
from kjump.lab.campaign.provocations import mark
from kjump.lab.hibernation import suspend
from kjump.lab.machine.disks import copy_disk, flip, make_disk, read_superblock, write_superblock
from kjump.lab.machine.installation import TARGET_DEVICE, Hardware, Installation
from kjump.lab.machine.qemu import VirtualMachine

MIB = 1 << 20
STRICT = "memmap=4K$0x100000 iomem=strict"
"""What makes a second kernel refuse to map the first one's memory, whatever kjump tells it."""
HIGH_WINDOW = ("--window", "0x21e00000,96M")
"""At the end of memory: the mailbox is below it."""


def assert_unharmed(machine: VirtualMachine) -> None:
    assert not provocations.harm(machine)


def test_failures_in_b_bring_a_back_with_the_reason(installation: Installation) -> None:
    with installation.machine() as machine:
        guest = machine.guest
        guest.event("ready")
        mark(machine)

        doctor = guest.run("kjump", "doctor", "--to", TARGET_DEVICE)
        assert "FAIL" not in doctor.stdout and "target" in doctor.stdout

        refused = provocations.try_to_hibernate(machine, target="/dev/nowhere")
        assert refused.stderr.count("\n") == 1 and "/dev/nowhere cannot be opened" in refused.stderr
        assert "mounted" in provocations.try_to_hibernate(machine, target="/dev/vda").stderr

        raised = provocations.try_to_hibernate(machine, "--fault", "exception")
        assert "unexpected RuntimeError in the second kernel" in raised.stderr and "unharmed" in raised.stderr

        with provocations.disk_exchanged_when_armed(installation.target_disk):
            exchanged = provocations.try_to_hibernate(machine)
        assert "was the disk exchanged?" in exchanged.stderr

        assert "cancelled" in provocations.cancel_by_key(machine).stderr
        assert read_superblock(installation.target_disk).state is State.INVALID


def test_a_second_kernel_that_cannot_play_its_role_or_reach_the_mailbox(installation: Installation) -> None:
    with installation.machine() as machine:
        machine.guest.event("ready")
        mark(machine)

        role = provocations.try_to_hibernate(machine, "--append", "kjump.role=third")
        assert "there is no role called third" in role.stderr and "unharmed" in role.stderr

        # All of the first kernel's memory below the window in one reserved range with what lies below 1 MiB.
        strict = provocations.try_to_hibernate(machine, *HIGH_WINDOW, "--append", STRICT)
        assert "the second kernel came back without a report; this system went on unharmed" in strict.stderr


def test_a_target_too_small(installation: Installation) -> None:
    make_disk(installation.target_disk, 8 * MIB)
    with installation.machine() as machine:
        machine.guest.event("ready")
        mark(machine)
        reply = provocations.try_to_hibernate(machine)
        assert "writing the image" in reply.stderr and "unharmed" in reply.stderr


def refused_boot(
    installation: Installation, words: str, *, options: str = "", hardware: Hardware | None = None
) -> None:
    """Boot; the image must be refused with `words`, and the machine boot as usual."""
    assert words in provocations.refusal_at_boot(installation, options, hardware=hardware)


def test_bad_images_give_a_sentence_and_an_ordinary_boot(installation: Installation) -> None:
    with installation.machine() as machine:
        machine.guest.event("ready")
        mark(machine)
        suspended = suspend(machine)
    image = copy_disk(installation.target_disk, installation.folder / "image.img")
    root = copy_disk(installation.root_disk, installation.folder / "root-as-saved.img")
    good = read_superblock(image)

    with installation.machine() as machine:
        assert hibernation.resume(machine, suspended.command).reply.status == 0
        assert_unharmed(machine)
        machine.power_off()
    assert read_superblock(installation.target_disk).state is State.CONSUMED
    refused_boot(installation, "resumed already")

    copy_disk(image, installation.target_disk)
    refused_boot(installation, "the ext4 file system on /dev/vda (mounted at /) has changed")

    copy_disk(image, installation.target_disk)
    write_superblock(installation.target_disk, good.evolve(state=State.WRITING))
    refused_boot(installation, "half written")

    copy_disk(image, installation.target_disk)
    bigger = Hardware(installation.hardware.memory + 128 * MIB, installation.hardware.cpus)
    refused_boot(installation, "memory map", hardware=bigger)
    assert read_superblock(installation.target_disk).state is State.INVALID
    refused_boot(installation, "memory map")  # invalidated by the boot before: the reason is kept

    copy_disk(image, installation.target_disk)
    refused_boot(installation, "told not to resume", options="kjump.noresume")
    assert read_superblock(installation.target_disk).state is State.INVALID

    copy_disk(image, installation.target_disk)
    flip(installation.target_disk, SUPERBLOCK_SIZE + good.seek_table_offset + 40)
    refused_boot(installation, "damaged")

    copy_disk(image, installation.target_disk)
    copy_disk(root, installation.root_disk)
    flip(installation.target_disk, SUPERBLOCK_SIZE + good.image_length // 2)
    assert "did not resume it (the image on /dev/vdb is damaged" in provocations.failing_restore(installation)

    copy_disk(image, installation.target_disk)
    copy_disk(root, installation.root_disk)
    flip(installation.target_disk, SUPERBLOCK_SIZE + good.image_length // 2)
    assert "tried before and failed: the image on /dev/vdb is damaged" in provocations.failing_restore_in_third_kernel(
        installation
    )


def test_a_damaged_superblock(installation: Installation) -> None:
    for offset in (9, 100, 4095):
        write_superblock(installation.target_disk, Superblock(state=State.COMPLETE))
        flip(installation.target_disk, offset)
        refused_boot(installation, "superblock")


def test_disks_that_fail_and_power_that_is_lost(folder: Path) -> None:
    """A few runs of the campaign; all of it is `kjump lab demo faults`."""
    names = ["write-error", "read-error", "bit-flips", "killed-while-saving", "killed-while-restoring"]
    said: list[str] = []
    with Campaign(folder, version="6.12", seed=1, size=campaign.QUICK, jobs=1, tell=said.append) as shared:
        findings = list(campaign.run(shared, catalogue.FAULTS, names))
    assert [finding.name for finding in findings] == names
    assert all(finding.ok for finding in findings), (findings, said)
