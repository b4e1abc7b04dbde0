"""Signatures: what must not be overwritten by mistake is recognised."""

import shutil
import subprocess
from pathlib import Path

import pytest

from kjump.formats import signatures
from kjump.formats.superblock import State, Superblock


@pytest.mark.parametrize(("name", "offset", "magic"), signatures._MAGICS)
def test_each_magic_is_found_at_its_place(name: str, offset: int, magic: bytes) -> None:
    head = bytearray(signatures.LENGTH)
    head[offset : offset + len(magic)] = magic
    assert signatures.found(bytes(head)) == name


def test_nothing_is_found_on_an_empty_small_or_armed_device() -> None:
    assert signatures.found(bytes(signatures.LENGTH)) is None
    assert signatures.found(b"") is None
    assert signatures.found(Superblock(state=State.COMPLETE).pack().ljust(signatures.LENGTH, b"\0")) is None


@pytest.mark.parametrize(
    ("command", "name"),
    [(["mke2fs", "-q", "-t", "ext4"], "ext4"), (["mkswap"], "swap"), (["mkfs.vfat"], "FAT"), (["mkfs.xfs"], "XFS")],
)
def test_what_real_tools_make_is_recognised(tmp_path: Path, command: list[str], name: str) -> None:
    tool = shutil.which(command[0], path="/usr/sbin:/sbin:/usr/bin")
    if tool is None:
        pytest.skip(f"{command[0]} is not installed: install its package to force this")
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(320 << 20)
    subprocess.run([tool, *command[1:], str(disk)], check=True, capture_output=True)
    with disk.open("rb") as file:
        assert name in (signatures.found(file.read(signatures.LENGTH)) or "")
