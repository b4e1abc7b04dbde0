"""A scene: one machine's disks, kernel and initramfs, booted as often as the story needs.

`Scene.machine` gives the machine, started as a boot loader would: the kernel and kjump's initramfs, whose boot role
resumes from the target disk or mounts A's root file system.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from kjump.initramfs.build import build as build_initramfs
from kjump.lab.machine import rootfs
from kjump.lab.machine.kernel import LabKernel
from kjump.lab.machine.qemu import CPU, PORT_NAME, IoError, Machine, MachineConfig, accelerator

ROOT_DEVICE = "/dev/vda"
TARGET_DEVICE = "/dev/vdb"
_COMMAND_LINE = (
    f"console=ttyS0 panic=-1 root={ROOT_DEVICE} rootfstype=ext4 kjump.resume={TARGET_DEVICE} kjump.status={PORT_NAME}"
)


@dataclass(frozen=True)
class Hardware:
    """The machine a scene plays on: `memory` in bytes, CPUs, a QEMU CPU model."""

    memory: int = 768 << 20
    cpus: int = 2
    cpu: str = CPU


@dataclass(frozen=True)
class Scene:
    """Disks and kernel of one machine, in `folder`.

    `options` are added to the kernel's command line, `files` (path -> contents) to A's disk.
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
        """A's root file system (ext4), /dev/vda."""
        return self.folder / "root.img"

    @property
    def target_disk(self) -> Path:
        """The raw disk that takes images, /dev/vdb."""
        return self.folder / "target.img"

    @property
    def initramfs(self) -> Path:
        """kjump's initramfs, with the kernel as C."""
        return self.folder / "initramfs.img"

    @property
    def console_log(self) -> Path:
        """What all machines of this scene wrote to their consoles."""
        return self.folder / "console.log"

    def prepare(self) -> Scene:
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

    def fork(self, folder: Path, disks: Path | None = None) -> Scene:
        """Return this machine with disks of its own in `folder`: copies of those here, or of those in `disks`."""
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
        io_errors: tuple[IoError, ...] = (),
        state: Path | None = None,
    ) -> Machine:
        """Return the machine, not yet started, with more kernel `options`, other `hardware` or `more_disks` if wanted.

        `io_errors` come from its disks; with `state` it goes on where that was saved, once it is let.
        """
        hardware = hardware or self.hardware
        config = MachineConfig(
            kernel=self.kernel.image,
            initrd=self.initramfs,
            command_line=" ".join(filter(None, [_COMMAND_LINE, self.options, options])),
            memory=hardware.memory,
            cpus=hardware.cpus,
            cpu=hardware.cpu,
            disks=(self.root_disk, self.target_disk, *more_disks),
            extra=extra,
            io_errors=io_errors,
            incoming=state,
            accelerator=accelerator(self.kernel.image),
        )
        return Machine(config, log=self.console_log)

    def check_root_disk(self) -> tuple[bool, str]:
        """Run `e2fsck -fn` on A's disk; return whether it is clean, and what it printed."""
        done = subprocess.run(["/sbin/e2fsck", "-fn", str(self.root_disk)], capture_output=True, text=True, check=False)
        return done.returncode == 0, done.stdout + done.stderr


def copy_disk(source: Path, target: Path) -> Path:
    """Copy a disk, holes and all."""
    subprocess.run(["cp", "--sparse=always", str(source), str(target)], check=True)
    return target


def make_disk(path: Path, size: int) -> None:
    """Make an empty, sparse raw disk of `size` bytes."""
    with path.open("wb") as disk:
        disk.truncate(size)
