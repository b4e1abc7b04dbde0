"""Memory that no file holds yet: /proc/kcore of a running guest, /proc/vmcore of a guest that a second kernel replaced.

The judge is QEMU, which saves the same physical memory from outside.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from kjump import _core
from kjump.dump import dmesg
from kjump.dump.sources import Source, open_source
from kjump.lab import kernel as kernels
from kjump.lab.qemu import PORT_NAME, Guest, Machine
from kjump.lab.scene import TARGET_DEVICE, Hardware, Scene

MEMORY = 640 << 20
BLOCK = 1 << 20
WINDOW = "0x14000000,128M"
"""For the second kernel, in memory that a machine just booted has not used: what was there is lost to the dump."""
MARK = "kjump test: the end of A"


def dump(guest: Guest, source: str) -> dict[str, object]:
    """Dump `source` in the guest to the target disk, an ELF core from its first byte on."""
    command = f"kjump dump {source} - --format elf --level 31 --json > {TARGET_DEVICE}"
    report: dict[str, object] = json.loads(guest.run("sh", "-c", f"{command}; sync").stderr)
    return report


def memory_of(machine: Machine, folder: Path) -> bytes:
    """Stop the machine and return its physical memory."""
    path = folder / "memory"
    machine.execute("stop")
    machine.execute("pmemsave", val=0, size=MEMORY, filename=str(path))
    data = path.read_bytes()
    path.unlink()
    return data


def blocks(source: Source) -> list[tuple[int, int]]:
    """Return what the dump has, in pieces of address and length."""
    runs = _core.bitmap_runs(source.present, 0, len(source.present) * 8)
    return [(at, min(BLOCK, (last << 12) - at)) for first, last in runs for at in range(first << 12, last << 12, BLOCK)]


def kernel_code(guest: Guest) -> range:
    """Return where the running kernel's code is."""
    (line,) = (x for x in guest.run("cat", "/proc/iomem").stdout.splitlines() if x.endswith(": Kernel code"))
    first, last = (int(word, 16) for word in line.split(" : ")[0].split("-"))
    return range(first, last + 1 & -4096)


def test_a_running_kernel_and_one_that_was_replaced(folder: Path) -> None:
    kernel, hardware = kernels.build("6.12"), Hardware(memory=MEMORY, cpus=2)
    scene = Scene(folder, kernel, hardware, target_size=700 << 20, options="nokaslr").prepare()
    with scene.machine() as machine:
        guest = machine.guest
        guest.event("ready")
        check_kcore(machine, scene)
        guest.run("sh", "-c", f"echo '{MARK}' > /dev/kmsg; sync")
        image = f"/boot/vmlinuz-{kernel.release}"
        options = f"console=ttyS0 panic=-1 root=/dev/vda rootfstype=ext4 kjump.status={PORT_NAME}"
        initrd = "/boot/kjump-initramfs.img"
        guest.run("kjump", "load", image, "--initrd", initrd, "--append", options, "--window", WINDOW)
        left = time.monotonic()
        guest.start("kjump", "exec")
        guest.event("ready", since=left)
        check_vmcore(machine, scene)


def check_kcore(machine: Machine, scene: Scene) -> None:
    """A dump of a running kernel says that it is not consistent; what does not change in it is right."""
    code = kernel_code(machine.guest)
    report = dump(machine.guest, "/proc/kcore")
    assert report["consistent"] is False and report["complete"] is True
    left_out = report["left_out"]
    assert isinstance(left_out, dict) and left_out["free"] > 10_000 and left_out["cache"] > 1000
    outside = memory_of(machine, scene.folder)
    with open_source(scene.target_disk) as source:
        assert len(code) > 4 << 20
        assert source.read(code.start, len(code)) == outside[code.start : code.stop]
        log = [record.text for record in dmesg.records(source.layout)]
        assert log[0].startswith("Linux version 6.12")
    machine.execute("cont")


def check_vmcore(machine: Machine, scene: Scene) -> None:
    """A second kernel's /proc/vmcore is A as it stopped: every byte of the dump is in the machine's memory."""
    report = dump(machine.guest, "/proc/vmcore")
    assert report["consistent"] is True and report["complete"] is True
    outside = memory_of(machine, scene.folder)
    with open_source(scene.target_disk) as source:
        log = [record.text for record in dmesg.records(source.layout)]
        assert MARK in log
        pieces = blocks(source)
        assert sum(size for _, size in pieces) > 30 << 20
        for address, size in pieces:
            assert source.read(address, size) == outside[address : address + size], hex(address)
