"""What goes wrong, provoked for real: the reason is said, and nothing is lost."""

import threading
import time
from pathlib import Path

from kjump.formats.superblock import SUPERBLOCK_SIZE, State, Superblock
from kjump.lab import hibernation
from kjump.lab.qemu import Machine
from kjump.lab.scene import TARGET_DEVICE, Hardware, Scene, make_disk

MIB = 1 << 20


def read_superblock(disk: Path) -> Superblock:
    with disk.open("rb") as file:
        return Superblock.unpack(file.read(SUPERBLOCK_SIZE))


def write_superblock(disk: Path, superblock: Superblock) -> None:
    with disk.open("r+b") as file:
        file.write(superblock.pack())


def copy(source: Path, target: Path) -> Path:
    """Copy a disk, holes and all."""
    import subprocess

    subprocess.run(["cp", "--sparse=always", str(source), str(target)], check=True)
    return target


def mark(machine: Machine) -> None:
    """Leave something in A's memory that only this A can have."""
    machine.guest.run("sh", "-c", "echo alive > /run/marker; sleep 1000 >/dev/null 2>&1 & echo $! > /run/pid")


def assert_unharmed(machine: Machine) -> None:
    reply = machine.guest.run(
        "sh", "-c", "cat /run/marker; kill -0 $(cat /run/pid) && kjump status --json", check=False
    )
    assert reply.stdout.startswith("alive\n")
    assert '"loaded": false' in reply.stdout
    # Devices work again: the disk is read past the page cache.
    machine.guest.run("sh", "-c", "echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda of=/dev/null bs=1M count=8")


def test_failures_in_b_bring_a_back_with_the_reason(scene: Scene) -> None:
    with scene.machine() as machine:
        guest = machine.guest
        guest.event("ready")
        mark(machine)

        doctor = guest.run("kjump", "doctor", "--to", TARGET_DEVICE)
        assert "FAIL" not in doctor.stdout and "target" in doctor.stdout

        refused = guest.run("kjump", "hibernate", "--to", "/dev/nowhere", check=False)
        assert refused.status == 1
        assert refused.stderr.count("\n") == 1 and "/dev/nowhere cannot be opened" in refused.stderr

        mounted = guest.run("kjump", "hibernate", "--to", "/dev/vda", check=False)
        assert mounted.status == 1 and "mounted" in mounted.stderr

        raised = guest.run("kjump", "hibernate", "--to", TARGET_DEVICE, "--fault", "exception", check=False)
        assert raised.status == 1
        assert "unexpected RuntimeError in the second kernel" in raised.stderr and "unharmed" in raised.stderr
        assert_unharmed(machine)

        armed_before = read_superblock(scene.target_disk).cookie
        watcher = threading.Thread(target=exchange_disk, args=(scene.target_disk, armed_before))
        watcher.start()
        exchanged = guest.run("kjump", "hibernate", "--to", TARGET_DEVICE, check=False)
        watcher.join()
        assert exchanged.status == 1 and "was the disk exchanged?" in exchanged.stderr
        assert_unharmed(machine)

        command = guest.start("kjump", "hibernate", "--to", TARGET_DEVICE, "--level", "19")
        guest.wait(lambda: True if "saving [" in machine.console() else None, "the progress bar", 60)
        machine.type(b"\x1b")
        cancelled = guest.reply(command)
        assert cancelled.status == 1 and "cancelled" in cancelled.stderr
        assert read_superblock(scene.target_disk).state is State.INVALID
        assert_unharmed(machine)


def exchange_disk(disk: Path, old_cookie: bytes) -> None:
    """Wait until A has armed the disk with another cookie than `old_cookie`, and put an empty disk in its place."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with disk.open("r+b") as file:
            superblock = Superblock.unpack(file.read(SUPERBLOCK_SIZE))
            if superblock.state is State.ARMED and superblock.cookie != old_cookie:
                file.seek(0)
                file.write(bytes(SUPERBLOCK_SIZE))
                return
        time.sleep(0.02)
    raise AssertionError("the target was never armed")


def test_a_target_too_small(scene: Scene) -> None:
    make_disk(scene.target_disk, 8 * MIB)
    with scene.machine() as machine:
        machine.guest.event("ready")
        mark(machine)
        reply = machine.guest.run("kjump", "hibernate", "--to", TARGET_DEVICE, check=False)
        assert reply.status == 1
        assert "writing the image" in reply.stderr and "unharmed" in reply.stderr
        assert_unharmed(machine)


def refused_boot(scene: Scene, words: str, *, options: str = "", hardware: Hardware | None = None) -> None:
    """Boot; the image must be refused with `words`, and Linux A boot as usual."""
    with scene.machine(options, hardware=hardware) as machine:
        refusal = machine.guest.event("not-resumed", "resuming")
        assert refusal.name == "not-resumed"
        assert words in refusal.details["reason"]
        machine.guest.event("ready")
        assert f"kjump: not resumed: {refusal.details['reason']}" in machine.console()
        assert machine.guest.run("cat", "/run/marker", check=False).status


def test_bad_images_give_a_sentence_and_an_ordinary_boot(scene: Scene) -> None:
    with scene.machine() as machine:
        machine.guest.event("ready")
        mark(machine)
        suspended = hibernation.suspend(machine)
    image = copy(scene.target_disk, scene.folder / "image.img")
    root = copy(scene.root_disk, scene.folder / "root-as-saved.img")
    good = read_superblock(image)

    with scene.machine() as machine:
        assert hibernation.resume(machine, suspended.command).reply.status == 0
        assert_unharmed(machine)
        machine.guest.start("python3", "-c", "from kjump.lab.guest import power_off; power_off()")
        machine.wait_off()
    assert read_superblock(scene.target_disk).state is State.CONSUMED
    refused_boot(scene, "resumed already")

    copy(image, scene.target_disk)
    refused_boot(scene, "the ext4 file system on /dev/vda (mounted at /) has changed")

    copy(image, scene.target_disk)
    write_superblock(scene.target_disk, good.evolve(state=State.WRITING))
    refused_boot(scene, "half written")

    copy(image, scene.target_disk)
    bigger = Hardware(scene.hardware.memory + 128 * MIB, scene.hardware.cpus)
    refused_boot(scene, "memory map", hardware=bigger)
    assert read_superblock(scene.target_disk).state is State.INVALID
    refused_boot(scene, "memory map")  # invalidated by the boot before: the reason is kept

    copy(image, scene.target_disk)
    refused_boot(scene, "told not to resume", options="kjump.noresume")
    assert read_superblock(scene.target_disk).state is State.INVALID

    copy(image, scene.target_disk)
    flip(scene.target_disk, SUPERBLOCK_SIZE + good.seek_table_offset + 40)
    refused_boot(scene, "damaged")

    copy(image, scene.target_disk)
    copy(root, scene.root_disk)
    flip(scene.target_disk, SUPERBLOCK_SIZE + good.image_length // 2)
    with scene.machine() as machine:
        machine.guest.event("resuming")
        assert machine.wait_off() == "guest-reset"
        assert "is damaged" in machine.console()
    refused_boot(scene, "tried before and failed: the image on /dev/vdb is damaged")


def flip(disk: Path, offset: int) -> None:
    with disk.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def test_a_damaged_superblock(scene: Scene) -> None:
    for offset in (9, 100, 4095):
        write_superblock(scene.target_disk, Superblock(state=State.COMPLETE))
        flip(scene.target_disk, offset)
        refused_boot(scene, "superblock")
