"""Memory that no file holds yet: /proc/kcore of a running guest, /proc/vmcore of one that panicked.

The judge is QEMU, which saves the same physical memory from outside.
"""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

from kjump.dump import dmesg
from kjump.dump.bitmaps import runs
from kjump.dump.opening import open_source
from kjump.lab.machine import kernel_source as kernels
from kjump.lab.machine.guest_channel import PORT_NAME, GuestChannel
from kjump.lab.machine.installation import ROOT_DEVICE, TARGET_DEVICE, Hardware, Installation
from kjump.lab.machine.qemu import VirtualMachine

MEMORY = 640 << 20
# A static key turns one such instruction, a jump or a no-op, into the other; how many a running kernel has turned
# between two looks depends on what it had to do.
JUMP_BYTES = 5


def dump(guest: GuestChannel, source: str, level: int) -> dict[str, object]:
    """Dump `source` in the guest to the target disk, an ELF core from its first byte on."""
    command = f"kjump dump {source} - --format elf --level {level} --json > {TARGET_DEVICE}"
    report: dict[str, object] = json.loads(guest.run("sh", "-c", f"{command}; sync").stderr)
    return report


def memory_of(machine: VirtualMachine, folder: Path) -> bytes:
    """Stop the machine and return its physical memory."""
    path = folder / "memory"
    machine.execute("stop")
    machine.execute("pmemsave", val=0, size=MEMORY, filename=str(path))
    data = path.read_bytes()
    path.unlink()
    return data


def where(guest: GuestChannel, what: str) -> range:
    """Return where in memory /proc/iomem has `what`, in whole pages."""
    (line,) = (x for x in guest.run("cat", "/proc/iomem").stdout.splitlines() if x.endswith(f": {what}"))
    first, last = (int(word, 16) for word in line.split(" : ")[0].split("-"))
    return range(first, last + 1 & -4096)


def longest_run(addresses: set[int]) -> int:
    """Return how many of `addresses` follow each other without a gap, at most; 0 for none."""
    first = (address for address in addresses if address - 1 not in addresses)
    return max((next(n for n in itertools.count() if a + n not in addresses) for a in first), default=0)


def test_a_running_kernel(folder: Path) -> None:
    hardware = Hardware(memory=MEMORY, cpus=2)
    installation = Installation(folder, kernels.build("6.12"), hardware, target_size=700 << 20).prepare()
    with installation.machine() as machine:
        machine.guest.event("ready")
        check_kcore(machine, installation)


def check_kcore(machine: VirtualMachine, installation: Installation) -> None:
    """A dump of a running kernel says that it is not consistent; what does not change in it is right."""
    code = where(machine.guest, "Kernel code")
    report = dump(machine.guest, "/proc/kcore", 31)
    assert report["consistent"] is False and report["complete"] is True
    left_out = report["left_out"]
    assert isinstance(left_out, dict) and left_out["free"] > 10_000 and left_out["cache"] > 1000
    outside = memory_of(machine, installation.folder)
    with open_source(installation.target_disk) as source:
        assert len(code) > 4 << 20
        patched = set()
        for page in range(code.start, code.stop, 4096):
            seen, there = source.read(page, 4096), outside[page : page + 4096]
            if seen != there:
                patched |= {page + i for i in range(4096) if seen[i] != there[i]}
        assert longest_run(patched) <= JUMP_BYTES  # a running kernel patches its code: static keys
        log = [record.text for record in dmesg.records(source.layout)]
        assert log[0].startswith("Linux version 6.12")


def test_a_panicked_kernel(folder: Path) -> None:
    """As kdump does it: the crash kernel, started by the panic, dumps the one that panicked."""
    hardware = Hardware(memory=MEMORY, cpus=2)
    installation = Installation(
        folder, kernels.build("6.12"), hardware, target_size=700 << 20, options="crashkernel=192M"
    ).prepare()
    line = f"console=ttyS0 quiet root={ROOT_DEVICE} rw rootfstype=ext4 kjump.status={PORT_NAME} nr_cpus=1 reset_devices"
    with installation.machine() as machine:
        guest = machine.guest
        guest.event("ready")
        crash_kernel = where(guest, "Crash kernel")
        kernel, initrd = f"/boot/vmlinuz-{installation.kernel.release}", "/boot/kjump-initramfs.img"
        assert "bzImage" in guest.run("kjump", "load", "--on-crash", initrd, check=False).stderr
        steps = (
            (("load", "--on-crash", kernel), "yes"),
            (("unload", "--on-crash"), "no"),
            (("load", "--on-crash", kernel, "--initrd", initrd, "--reuse-cmdline", "--append", line), "yes"),
        )
        for step, loaded in steps:
            guest.run("kjump", *step)
            assert f"loaded for a crash: {loaded}" in guest.run("kjump", "status", check=False).stdout
        asked = time.monotonic()
        guest.start("sh", "-c", "echo c > /proc/sysrq-trigger")
        guest.event("ready", since=asked, timeout=120)
        log = guest.run("kjump", "dump", "dmesg", "/proc/vmcore").stdout
        assert "Kernel panic - not syncing: sysrq triggered crash" in log
        # Level 1, because an ELF core has zeros for a few pages left out between others.
        report = dump(guest, "/proc/vmcore", 1)
        assert report["consistent"] is True and report["complete"] is True
        outside = memory_of(machine, installation.folder)
    with open_source(installation.target_disk) as source:
        kept = [page for run in runs(source.present, len(source.present) * 8) for page in range(run.start, run.end)]
        assert len(kept) > 10_000
        differ = [page for page in kept if source.read(page << 12, 4096) != outside[page << 12 : page + 1 << 12]]
        assert [page for page in differ if page << 12 not in crash_kernel] == []
