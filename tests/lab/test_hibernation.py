"""The main job on real kernels, and the image as other tools see it."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from kjump.formats import seekable
from kjump.formats.superblock import SUPERBLOCK_SIZE, State, Superblock
from kjump.image.restore import open_image
from kjump.kexec.kimage import walk
from kjump.lab import hibernation
from kjump.lab.campaign.provocations import NO_DIRECT
from kjump.lab.guest.workload import PATTERN
from kjump.lab.hibernation import HibernationOptions
from kjump.lab.machine.disks import DiskImage, read_superblock, write_superblock
from kjump.lab.machine.installation import Hardware, Installation
from kjump.lab.machine.qemu import VirtualMachine
from kjump.lab.machine.qemu_config import CPU
from kjump.ranges import Range, align_down

MIB = 1 << 20
PAGE = 4096


@pytest.mark.parametrize(
    ("version", "hardware", "rounds", "options"),
    [
        ("6.12", Hardware(memory=768 * MIB, cpus=2), 2, ""),
        ("6.12", Hardware(memory=768 * MIB, cpus=2), 1, NO_DIRECT),
        ("6.1", Hardware(memory=768 * MIB, cpus=4), 1, ""),
        ("6.1", Hardware(memory=512 * MIB, cpus=1, cpu="max,la57=off"), 1, NO_DIRECT),
        ("6.12", Hardware(memory=8192 * MIB, cpus=2, cpu="max,la57=off"), 1, ""),
    ],
    ids=lambda value: (
        f"{value.memory >> 20}M-{value.cpus}cpu-{value.cpu.replace(CPU, 'most')}"
        if isinstance(value, Hardware)
        else str(value)
    ),
)
def test_a_linux_at_work_is_saved_and_comes_back(
    folder: Path, version: str, hardware: Hardware, rounds: int, options: str
) -> None:
    demo = hibernation.run(
        folder, version=version, hardware=hardware, how=HibernationOptions(rounds=rounds, kernel_options=options)
    )
    assert demo.ok, demo.failed
    assert (demo.phases["boot_c"] > 0) == (options == NO_DIRECT)
    assert set(demo.phases) == set(hibernation.PHASES)
    assert all(seconds >= 0 for seconds in demo.phases.values()), demo.phases
    assert 200 * MIB < demo.saved_bytes < hardware.memory
    assert 100 * MIB < demo.image_bytes < demo.saved_bytes
    disk = folder / "target.img"
    write_superblock(disk, read_superblock(disk).evolve(state=State.COMPLETE))
    with DiskImage(disk) as target:
        opened = open_image(target, states=(State.COMPLETE,))
    assert opened.contents.facts.kept_head, "this kernel's list can be shortened"


def test_four_levels_in_a_and_five_in_the_cpu_and_free_pages_trusted_to_be_zero(folder: Path) -> None:
    hardware = Hardware(memory=640 * MIB, cpus=2)
    how = HibernationOptions(kernel_options="no5lvl init_on_free=1")
    demo = hibernation.run(folder, version="6.12", hardware=hardware, how=how)
    assert demo.ok, demo.failed


def test_an_intel_model(folder: Path) -> None:
    """Linux parks offline CPUs of Intel models that have MONITOR with MWAIT, of others with HLT."""
    hardware = Hardware(memory=640 * MIB, cpus=3, cpu="Skylake-Client")
    demo = hibernation.run(folder, version="6.12", hardware=hardware)
    assert demo.ok, demo.failed


SETTINGS = {"/proc/sys/vm/percpu_pagelist_high_fraction": 16, "/sys/kernel/rcu_expedited": 0}
"""What is changed on the way into a jump, and must be as it was afterwards."""


def window_with_pattern(machine: VirtualMachine, frames: Sequence[int]) -> tuple[str, int]:
    """Return a window option that covers a page of the pattern, and that page's index in the pattern."""
    iomem = machine.guest.run("cat", "/proc/iomem").stdout
    kernel = [
        Range(*(int(n, 16) for n in line.split(" : ")[0].split("-")))
        for line in iomem.splitlines()
        if "Kernel " in line
    ]
    size = 128 * MIB
    for index, frame in enumerate(frames):
        start = align_down(max(16 * MIB, frame * PAGE - 64 * MIB), 2 * MIB)
        window = Range.of_size(start, size)
        inside = frame * PAGE in window and window.end <= 600 * MIB
        if inside and not any(window.overlaps(k) for k in kernel):
            return f"{start:#x},128M", index
    raise AssertionError("no page of the pattern lies where a window can be")


@pytest.fixture
def saved(installation: Installation) -> dict[str, Any]:
    """A saved machine whose window covers a page of known contents, and where that page is."""
    with installation.machine() as machine:
        machine.guest.event("ready")
        account = hibernation.start_workload(machine.guest, 0)
        window, index = window_with_pattern(machine, account.pages)
        for path, value in SETTINGS.items():
            machine.guest.run("sh", "-c", f"echo {value} > {path}")
        suspended = hibernation.suspend(machine, "--window", window)
    start, _, _ = window.partition(",")
    return {
        "installation": installation,
        "command": suspended.command,
        "page": index,
        "address": account.pages[index] * PAGE,
        "window": Range.of_size(int(start, 0), 128 * MIB),
    }


def test_the_image_is_a_standard_vmcore(saved: dict[str, Any], folder: Path) -> None:
    installation: Installation = saved["installation"]
    with installation.target_disk.open("rb") as disk:
        superblock = Superblock.unpack(disk.read(SUPERBLOCK_SIZE))
        compressed = disk.read(superblock.image_length)
    assert superblock.state is State.COMPLETE
    table = seekable.SeekTable.decode(compressed[superblock.seek_table_offset :])
    core = folder / "core.img"
    with core.open("wb") as out:
        subprocess.run(["zstd", "-dc"], input=compressed, stdout=out, check=True)
    assert core.stat().st_size == superblock.stream_length == table.stream_length

    listing = subprocess.run(["readelf", "-lW", str(core)], capture_output=True, text=True, check=True)
    assert "CORE" in listing.stdout and "LOAD" in listing.stdout
    assert not listing.stderr
    notes = subprocess.run(["readelf", "-nW", str(core)], capture_output=True, text=True, check=True)
    assert "VMCOREINFO" in notes.stdout and "KJUMP" in notes.stdout
    dmesg = folder / "dmesg"
    subprocess.run(["makedumpfile", "--dump-dmesg", str(core), str(dmesg)], check=True, capture_output=True)
    assert f"Linux version {installation.kernel.release}" in dmesg.read_text(errors="replace")

    assert saved["address"] in saved["window"]
    expected = (PATTERN + b"%08d " % saved["page"]).ljust(PAGE, b".")
    assert page_at(core, saved["address"]) == expected

    # The kernel keeps its list where the image says, and it is the list of the image.
    with DiskImage(installation.target_disk) as target:
        contents = open_image(target, states=(State.COMPLETE,)).contents
    offset = contents.facts.kept_head % PAGE
    head = int.from_bytes(page_at(core, contents.facts.kept_head - offset)[offset : offset + 8], "little")
    assert tuple(sorted(walk(lambda address, _: page_at(core, address), head))) == contents.shadow.runs

    # A reader was here, and nothing was harmed: the machine still comes back.
    with installation.machine() as machine:
        resumed = hibernation.resume(machine, saved["command"])
        assert resumed.reply.status == 0
        assert hibernation.verify_workload(machine.guest).ok
        for path, value in SETTINGS.items():
            assert machine.guest.run("cat", path).stdout == f"{value}\n"


def page_at(core: Path, address: int) -> bytes:
    """Read a page by its physical address, with an independent ELF reader."""
    with core.open("rb") as file:
        for segment in ELFFile(file).iter_segments("PT_LOAD"):
            offset = address - segment["p_paddr"]
            if 0 <= offset < segment["p_filesz"]:
                file.seek(segment["p_offset"] + offset)
                return file.read(PAGE)
    raise AssertionError(f"{address:#x} is not in the core")
