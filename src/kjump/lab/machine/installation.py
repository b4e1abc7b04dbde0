"""A system installed in a folder: disks, a kernel and an initramfs, which can be booted any number of times.

`Installation.machine` returns a virtual machine that QEMU boots with the kernel and kjump's initramfs, whose boot role
resumes from the target disk or mounts the root file system.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from kjump.initramfs.build import build as build_initramfs
from kjump.lab.machine import rootfs, tools
from kjump.lab.machine.disks import copy_disk, make_disk
from kjump.lab.machine.guest_channel import PORT_NAME
from kjump.lab.machine.kernel import LabKernel
from kjump.lab.machine.qemu import VirtualMachine, accelerator
from kjump.lab.machine.qemu_config import CPU, BadBlock, VirtualMachineConfig

ROOT_DEVICE = "/dev/vda"
TARGET_DEVICE = "/dev/vdb"
_COMMAND_LINE = (
    f"console=ttyS0 panic=-1 root={ROOT_DEVICE} rw rootfstype=ext4 "
    f"kjump.resume={TARGET_DEVICE} kjump.status={PORT_NAME}"
)


@dataclass(frozen=True)
class Hardware:
    """What a virtual machine has: `memory` in bytes, CPUs, a QEMU CPU model."""

    memory: int = 768 << 20
    cpus: int = 2
    cpu: str = CPU


@dataclass(frozen=True)
class Installation:
    """Disks and kernel of one system, in `folder`.

    `options` are added to the kernel's command line, `files` (path -> contents) to the root file system.
    """

    folder: Path
    kernel: LabKernel
    hardware: Hardware
    target_size: int
    options: str = ""
    root_size: int = rootfs.SIZE
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def root_disk(self) -> Path:
        """The root file system (ext4), /dev/vda."""
        return self.folder / "root.img"

    @property
    def target_disk(self) -> Path:
        """The raw disk that takes images, /dev/vdb."""
        return self.folder / "target.img"

    @property
    def initramfs(self) -> Path:
        """kjump's initramfs, which contains the restoring kernel."""
        return self.folder / "initramfs.img"

    @property
    def console_log(self) -> Path:
        """The console output of all virtual machines with these disks."""
        return self.folder / "console.log"

    def prepare(self) -> Installation:
        """Make the disks and the initramfs; LabError when a tool is missing."""
        data = build_initramfs(self.kernel.image)
        self.initramfs.write_bytes(data)
        rootfs.build(
            self.root_disk,
            kernel=self.kernel.image,
            release=self.kernel.release,
            initramfs=data,
            size=self.root_size,
            files=self.files,
        )
        make_disk(self.target_disk, self.target_size)
        return self

    def remove_disks(self) -> None:
        """Remove the disks, and the initramfs; the console log stays."""
        for path in (self.root_disk, self.target_disk, self.initramfs):
            path.unlink(missing_ok=True)

    def fork(self, folder: Path, disks: Path | None = None) -> Installation:
        """Return this system with its own disks in `folder`: copies of the present ones, or of those in `disks`."""
        folder.mkdir(parents=True, exist_ok=True)
        forked = replace(self, folder=folder)
        for disk in (forked.root_disk, forked.target_disk):
            copy_disk((disks or self.folder) / disk.name, disk)
        forked.initramfs.unlink(missing_ok=True)
        forked.initramfs.symlink_to(self.initramfs.resolve())
        return forked

    def machine(
        self,
        options: str = "",
        *,
        hardware: Hardware | None = None,
        extra: tuple[str, ...] = (),
        more_disks: tuple[Path, ...] = (),
        bad_blocks: tuple[BadBlock, ...] = (),
        state: Path | None = None,
    ) -> VirtualMachine:
        """Return the machine, not yet started, with more kernel `options`, other `hardware` or `more_disks` if wanted.

        Its disks have `bad_blocks`; with `state` it continues from that saved state when `VirtualMachine.go_on` is
        called.
        """
        hardware = hardware or self.hardware
        config = VirtualMachineConfig(
            kernel=self.kernel.image,
            initrd=self.initramfs,
            command_line=" ".join(filter(None, [_COMMAND_LINE, self.options, options])),
            memory=hardware.memory,
            cpus=hardware.cpus,
            cpu=hardware.cpu,
            disks=(self.root_disk, self.target_disk, *more_disks),
            extra=extra,
            bad_blocks=bad_blocks,
            incoming=state,
            accelerator=accelerator(self.kernel.image),
        )
        return VirtualMachine(config, log=self.console_log)

    def check_root_disk(self) -> tuple[bool, str]:
        """Run `e2fsck -fn` on the root disk; return whether it is clean, and what it printed."""
        command = [tools.path_of("e2fsck"), "-fn", str(self.root_disk)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode == 0, done.stdout + done.stderr
