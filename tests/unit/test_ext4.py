"""The identity of an ext4, against file systems made and told by e2fsprogs."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kjump.errors import FormatError
from kjump.formats import ext4

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
pytestmark = pytest.mark.skipif(shutil.which("mke2fs", path=PATH) is None, reason="mke2fs is not installed")


def tool(*command: str, text: str = "") -> str:
    """Run a program of e2fsprogs; return what it prints."""
    program = shutil.which(command[0], path=PATH)
    assert program
    return subprocess.run([program, *command[1:]], input=text, capture_output=True, text=True, check=True).stdout


def reader(path: Path) -> ext4.Reader:
    data = path.read_bytes()
    return lambda offset, length: data[offset : offset + length].ljust(length, b"\0")


@pytest.fixture(
    params=[
        "",
        "-b 1024",
        "-b 4096 -O ^64bit",
        "-O ^extents,^64bit",
        "-I 128",
        "-O bigalloc",
        "-O meta_bg,^resize_inode",
    ]
)
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "disk"
    tool("mke2fs", "-q", "-F", "-t", "ext4", *request.param.split(), str(path), "64M")
    return path


def dumpe2fs(path: Path) -> dict[str, str]:
    lines = tool("dumpe2fs", "-h", str(path)).splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_the_fields_are_those_that_dumpe2fs_shows(disk: Path) -> None:
    tool("tune2fs", "-C", "7", "-M", "/somewhere", str(disk))
    found = ext4.identity(reader(disk))
    told = dumpe2fs(disk)
    assert found.superblock.uuid == told["Filesystem UUID"].replace("-", "")
    assert found.superblock.mount_count == int(told["Mount count"]) == 7
    assert found.superblock.last_mounted == told["Last mounted on"]
    assert found.journal is not None
    assert found.journal.sequence == int(told["Journal sequence"], 16)
    assert found.journal.start == int(told["Journal start"])


def test_a_journal_that_was_written_to(disk: Path) -> None:
    before = ext4.identity(reader(disk))
    # debugfs writes a transaction that revokes a block: the journal is no longer empty.
    tool("debugfs", "-w", "-f", "/dev/stdin", str(disk), text="jo\njw -r 100\njc\n")
    now = ext4.identity(reader(disk))
    assert now.journal != before.journal and now.journal and now.journal.start != 0
    assert re.search(r"journal's start 0 -> [1-9]", ext4.difference(before, now))
    assert ext4.difference(now, now) == ""


def test_another_file_system(tmp_path: Path, disk: Path) -> None:
    other = tmp_path / "other"
    tool("mke2fs", "-q", "-F", "-t", "ext4", str(other), "64M")
    assert ext4.difference(ext4.identity(reader(disk)), ext4.identity(reader(other))) == "it is another file system"


def test_without_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    tool("mke2fs", "-q", "-F", "-t", "ext2", str(path), "8M")
    assert ext4.identity(reader(path)).journal is None


def test_a_journal_in_many_pieces(tmp_path: Path) -> None:
    """Its extent tree does not fit in the inode any more: here the inode's extents are put in a block of their own."""
    path = tmp_path / "disk"
    tool("mke2fs", "-q", "-F", "-b", "1024", "-t", "ext4", "-O", "^metadata_csum", str(path), "32M")
    whole = ext4.identity(reader(path))
    block, offset = re.findall(r"located at block (\d+), offset (\w+)", tool("debugfs", "-R", "imap <8>", str(path)))[0]
    free = int(tool("debugfs", "-R", "ffb 1 20000", str(path)).split(":")[1])
    data = bytearray(path.read_bytes())
    root = int(block) * 1024 + int(offset, 16) + 0x28
    data[free * 1024 : free * 1024 + 60] = data[root : root + 60]
    data[root : root + 24] = struct.pack("<4HI IIHH", 0xF30A, 1, 4, 1, 0, 0, free, 0, 0)
    path.write_bytes(data)
    assert f"0/ 1   1/  1     0 -  4095 {free}" in tool("debugfs", "-R", "ex <8>", str(path))
    assert ext4.identity(reader(path)) == whole


def test_what_is_none(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no ext4"):
        ext4.identity(lambda _, length: bytes(length))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, 3071), st.integers(0, 255)), min_size=1, max_size=30))
def test_damage_is_survived(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    path = tmp_path / "disk"
    if not path.exists():
        tool("mke2fs", "-q", "-F", "-b", "1024", "-t", "ext4", str(path), "4M")
    data = bytearray(path.read_bytes())
    for at, value in edits:
        data[1024 + at] = value
    try:
        ext4.identity(lambda offset, length: bytes(data[offset : offset + length]).ljust(length, b"\0"))
    except FormatError as error:
        assert str(error)
