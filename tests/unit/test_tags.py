"""What devices and partitions are called, as libblkid calls them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.formats import partitions, tags
from kjump.formats.tags import Tags
from kjump.initramfs import build

_PLACES = "/usr/sbin:/sbin:/usr/bin:/bin"
UUID = "01234567-89ab-4def-8123-456789abcdef"


def tool(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":" + _PLACES)
    if found is None:
        pytest.skip(f"{name} is not installed: install its package to force this")
    return found


def reader(data: bytes) -> tags.Reader:
    return lambda offset, length: data[offset : offset + length]


def file_reader(path: Path) -> tags.Reader:
    def read(offset: int, length: int) -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    return read


def disk(tmp_path: Path, size: int = 320 << 20) -> Path:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(size)
    return path


def by_blkid(path: Path) -> Tags:
    lines = subprocess.run(
        [tool("blkid"), "-p", "-o", "export", str(path)], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    found = dict(line.split("=", 1) for line in lines)
    return Tags(found["TYPE"], found.get("UUID", ""), found.get("LABEL", "").replace("\\ ", " "))


MADE = [
    pytest.param(["mke2fs", "-q", "-t", "ext4", "-L", "my root", "-U", UUID], Tags("ext4", UUID, "my root"), id="ext4"),
    pytest.param(["mke2fs", "-q", "-t", "ext3", "-L", "three", "-U", UUID], Tags("ext3", UUID, "three"), id="ext3"),
    pytest.param(["mke2fs", "-q", "-t", "ext2", "-U", UUID], Tags("ext2", UUID), id="ext2"),
    pytest.param(["mke2fs", "-q", "-O", "journal_dev", "-U", UUID], Tags("jbd", UUID), id="journal"),
    pytest.param(
        ["mkfs.xfs", "-q", "-L", "twelve chars", "-m", f"uuid={UUID}"], Tags("xfs", UUID, "twelve chars"), id="xfs"
    ),
    pytest.param(["mkfs.btrfs", "-q", "-L", "sub", "-U", UUID], Tags("btrfs", UUID, "sub"), id="btrfs"),
    pytest.param(["mkfs.f2fs", "-q", "-l", "flash", "-U", UUID], Tags("f2fs", UUID, "flash"), id="f2fs"),
    pytest.param(["mkswap", "-L", "sw", "-U", UUID], Tags("swap", UUID, "sw"), id="swap"),
    pytest.param(
        ["mkfs.vfat", "-F", "12", "-n", "OLD", "-i", "00abcdef"], Tags("vfat", "00AB-CDEF", "OLD"), id="fat12"
    ),
    pytest.param(
        ["mkfs.vfat", "-F", "16", "-n", "BOOT", "-i", "1234abcd"], Tags("vfat", "1234-ABCD", "BOOT"), id="fat16"
    ),
    pytest.param(
        ["mkfs.vfat", "-F", "32", "-n", "EFI SYS", "-i", "89abcdef"], Tags("vfat", "89AB-CDEF", "EFI SYS"), id="fat32"
    ),
    pytest.param(["mkfs.vfat", "-F", "32", "-i", "89abcdef"], Tags("vfat", "89AB-CDEF"), id="fat32 without a label"),
]


@pytest.mark.parametrize(("command", "wanted"), MADE)
def test_what_real_tools_make_is_named_as_blkid_names_it(tmp_path: Path, command: list[str], wanted: Tags) -> None:
    path = disk(tmp_path, 8 << 20 if "12" in command else 320 << 20)
    subprocess.run([tool(command[0]), *command[1:], str(path)], check=True, capture_output=True)
    assert tags.read_tags(file_reader(path)) == wanted
    assert by_blkid(path) == wanted


def test_iso_9660_is_named_as_blkid_names_it(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    iso = tmp_path / "iso"
    subprocess.run([tool("genisoimage"), "-quiet", "-V", "CD 1", "-o", str(iso), str(tmp_path / "tree")], check=True)
    found = tags.read_tags(file_reader(iso))
    assert found is not None and (found.kind, found.label) == ("iso9660", "CD 1")
    assert found == by_blkid(iso)


@pytest.mark.parametrize("version", [1, 2])
def test_luks_volumes(version: int) -> None:
    head = bytearray(4096)
    head[:8] = b"LUKS\xba\xbe" + version.to_bytes(2, "big")
    head[24:28] = b"aes\0" if version == 1 else b"vol\0"
    head[168 : 168 + len(UUID)] = UUID.encode()
    assert tags.read_tags(reader(bytes(head))) == Tags("crypto_LUKS", UUID, "" if version == 1 else "vol")


def test_what_has_no_names() -> None:
    assert tags.read_tags(reader(b"hsqs".ljust(4096, b"\0"))) == Tags("squashfs")
    assert tags.read_tags(reader(bytes(tags.LENGTH))) is None
    assert tags.read_tags(reader(b"")) is None


def test_a_swap_space_with_an_image_of_the_kernel_keeps_its_name() -> None:
    head = bytearray(4096)
    head[0xFF6:0xFFF] = b"S1SUSPEND"
    head[0x40C:0x41C] = bytes.fromhex(UUID.replace("-", ""))
    assert tags.read_tags(reader(bytes(head))) == Tags("swsuspend", UUID)


_STARTS = [b"XFSB", b"LUKS\xba\xbe\0\2", b"\xebX\x90mkfs.fat\0\2\1\1\0\2\0\2\0", b"hsqs", b""]


@given(st.sampled_from(_STARTS), st.binary(max_size=700), st.sampled_from([0, 0x36, 0x52]), st.integers(0, 1 << 17))
def test_nothing_on_a_disk_is_an_error(start: bytes, noise: bytes, fat: int, size: int) -> None:
    data = bytearray(start + noise).ljust(512, b"\0")
    data[0x1FE:0x200] = b"\x55\xaa"
    data[fat : fat + 5] = b"FAT32"
    whole = bytes(data).ljust(size, b"\xff")
    tags.read_tags(reader(whole))
    for number in (0, 1, 200):
        partitions.name_of(reader(whole), number, 512)


_GPT = f"""label: gpt
unit: sectors
start=2048, size=2048, uuid={UUID}, name="Root Disk"
start=4096, size=2048, uuid=11111111-2222-4333-8444-555555555555
"""
_MBR = """label: dos
label-id: 0xabcd0001
start=2048, size=2048, type=83
start=4096, size=4096, type=5
start=6144, size=1024, type=83
"""


def partitioned(tmp_path: Path, script: str) -> Path:
    path = disk(tmp_path, 16 << 20)
    subprocess.run([tool("sfdisk"), "-q", str(path)], input=script, text=True, check=True, capture_output=True)
    return path


def test_partitions_of_a_gpt(tmp_path: Path) -> None:
    read = file_reader(partitioned(tmp_path, _GPT))
    assert partitions.name_of(read, 1, 512) == partitions.Partition(UUID, "Root Disk")
    assert partitions.name_of(read, 2, 512) == partitions.Partition("11111111-2222-4333-8444-555555555555")
    assert partitions.name_of(read, 3, 512) is None
    assert partitions.name_of(read, 200, 512) is None


def test_partitions_of_an_mbr(tmp_path: Path) -> None:
    read = file_reader(partitioned(tmp_path, _MBR))
    assert partitions.name_of(read, 1, 512) == partitions.Partition("abcd0001-01")
    assert partitions.name_of(read, 17, 512) == partitions.Partition("abcd0001-11")


def test_a_damaged_gpt_names_nothing(tmp_path: Path) -> None:
    path = partitioned(tmp_path, _GPT)
    data = bytearray(path.read_bytes())
    data[512 + 60] ^= 1
    assert partitions.name_of(reader(bytes(data)), 1, 512) is None
    assert partitions.name_of(reader(bytes(1024)), 1, 512) is None


def test_the_initramfs_has_what_names_are_decoded_with() -> None:
    """Names of partitions and of an F2FS are UTF-16, which Python decodes with a module of its own."""
    assert {"encodings.utf_16_le", "kjump.target.identify", "kjump.init.roles.mount_root"} <= {
        module.name for module in build.modules()
    }
