"""A target disk of a machine that is off, read on this host as any other target."""

from pathlib import Path

import pytest

from kjump.errors import TargetError
from kjump.formats.superblock import SUPERBLOCK_SIZE, State, Superblock
from kjump.lab.machine.disks import DiskImage


def test_it_is_read_as_any_target(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(Superblock(state=State.ARMED, capacity=1 << 20).pack().ljust(1 << 20, b"\0"))
    with DiskImage(path) as target:
        assert target.capacity == 1 << 20
        assert target.read_superblock().state is State.ARMED
        assert target.read(SUPERBLOCK_SIZE, 8) == bytes(8)
    with pytest.raises(TargetError, match="cannot be opened"):
        DiskImage(tmp_path / "none")
