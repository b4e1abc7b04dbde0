"""Memory that no file holds yet: /proc/kcore of a running guest.

The judge is QEMU, which saves the same physical memory from outside.
"""

from __future__ import annotations

import json
from pathlib import Path

from kjump.dump import dmesg
from kjump.dump.sources import open_source
from kjump.lab import kernel as kernels
from kjump.lab.qemu import Guest, Machine
from kjump.lab.scene import TARGET_DEVICE, Hardware, Scene

MEMORY = 640 << 20


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


def kernel_code(guest: Guest) -> range:
    """Return where the running kernel's code is."""
    (line,) = (x for x in guest.run("cat", "/proc/iomem").stdout.splitlines() if x.endswith(": Kernel code"))
    first, last = (int(word, 16) for word in line.split(" : ")[0].split("-"))
    return range(first, last + 1 & -4096)


def test_a_running_kernel(folder: Path) -> None:
    hardware = Hardware(memory=MEMORY, cpus=2)
    scene = Scene(folder, kernels.build("6.12"), hardware, target_size=700 << 20).prepare()
    with scene.machine() as machine:
        machine.guest.event("ready")
        check_kcore(machine, scene)


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
        differ = [
            page
            for page in range(code.start, code.stop, 4096)
            if source.read(page, 4096) != outside[page : page + 4096]
        ]
        assert len(differ) < 10  # a running kernel patches its code: static keys
        log = [record.text for record in dmesg.records(source.layout)]
        assert log[0].startswith("Linux version 6.12")
