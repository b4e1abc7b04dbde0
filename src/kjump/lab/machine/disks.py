"""Disks of virtual machines, which are raw files on this host: making, copying, reading and damaging them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from kjump.errors import LabError, TargetError
from kjump.formats.superblock import SUPERBLOCK_SIZE, Superblock
from kjump.lab.machine import tools
from kjump.target.device import Place, Target
from kjump.target.disks import FdDisk


def make_disk(path: Path, size: int) -> None:
    """Make an empty, sparse raw disk of `size` bytes."""
    with path.open("wb") as disk:
        disk.truncate(size)


def copy_disk(source: Path, target: Path) -> Path:
    """Copy a disk with its holes (sparse); return `target`."""
    subprocess.run(["cp", "--sparse=always", str(source), str(target)], check=True)
    return target


def make_file_system(image: Path, root: Path | None, size: int, *options: str) -> None:
    """Write an ext4 file system of `size` bytes with the contents of the folder `root`, if one is given.

    `options` are more arguments of mke2fs. LabError when mke2fs is missing or fails.
    """
    command = [tools.path_of("mke2fs"), "-q", "-t", "ext4", "-E", "root_owner=0:0,lazy_itable_init=0", *options]
    command += [*(("-d", str(root)) if root else ()), str(image)]
    image.unlink(missing_ok=True)
    done = subprocess.run([*command, f"{size >> 10}k"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")


def read_superblock(disk: Path) -> Superblock:
    """Return the superblock on a target disk; FormatError when there is none."""
    with disk.open("rb") as file:
        return Superblock.unpack(file.read(SUPERBLOCK_SIZE))


def write_superblock(disk: Path, superblock: Superblock) -> None:
    """Write `superblock` to a target disk of a machine that is off."""
    with disk.open("r+b") as file:
        file.write(superblock.pack())


def flip(disk: Path, offset: int, bit: int = 4) -> None:
    """Invert one bit of the byte at `offset`."""
    with disk.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


class DiskImage(Target):
    """A target disk of a machine that is off, opened on this host as a file."""

    def __init__(self, path: Path) -> None:
        """Open it for reading; TargetError when that is impossible."""
        self.path = str(path)
        self.extents = ()
        self.place = Place(self.path)
        try:
            self.disk = FdDisk(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise TargetError(f"{path} cannot be opened: {error.strerror}") from None
        self.capacity = path.stat().st_size
