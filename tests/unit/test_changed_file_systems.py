"""A file system that was written to is another one, also while its superblock and its first groups stay as they are."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kjump.errors import FormatError, ImageError
from kjump.formats import ext4, xfs
from kjump.target import disks, filesystems
from kjump.target.disks import FdDisk
from kjump.target.states import DiskState, FileSystem, Mounted

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
MIB = 1 << 20
MAGIC = 0xC03B3998
DESCRIPTOR, COMMIT, REVOKE = 1, 2, 5
WIDE, CSUM_V2, CSUM_V3, FAST = 0x2, 0x8, 0x10, 0x20
START_OF_DISK = 68 << 10


def tool(*command: str) -> str:
    """Run a program; skip the test when it is not installed."""
    program = shutil.which(command[0], path=PATH)
    if program is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run([program, *command[1:]], capture_output=True, text=True, check=True).stdout


class Files:
    """Disks that are files."""

    def open(self, path: str, *, writable: bool) -> tuple[FdDisk, int]:
        fd = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        return FdDisk(fd), os.fstat(fd).st_size

    def names(self) -> Iterator[str]:
        return iter(())


@pytest.fixture(autouse=True)
def files() -> Iterator[None]:
    with disks.used(Files()):  # type: ignore[arg-type]
        yield


def reader(path: Path) -> ext4.Reader:
    def read(offset: int, length: int) -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    return read


def refused_as(path: Path, before: DiskState, kind: str) -> str:
    """Return how the check names the change of `path` since it was as `before`; fails when it finds none."""
    with pytest.raises(ImageError, match="has changed since") as raised:
        filesystems.check([FileSystem(Mounted(str(path), "/", kind, True), before)])
    return str(raised.value)


class HandMade:
    """An ext4 with a log that is written as jbd2 would, without a mount: `features` are the journal's."""

    def __init__(self, path: Path, features: int, first: int = 1) -> None:
        self.path, self.features, self.at = path, features, first
        told = tool("dumpe2fs", "-h", str(path))
        self.size = int(re.findall(r"Block size: +(\d+)", told)[0])
        self.head = bytearray(reader(path)(self.place(0), self.size))
        self.length = int.from_bytes(self.head[0x10:0x14], "big")
        self.last = self.length - (8 if features & FAST else 0)
        struct.pack_into(">II", self.head, 0x18, 7, first)
        struct.pack_into(">I", self.head, 0x28, features)
        struct.pack_into(">I", self.head, 0x54, 8)
        self.put(0, bytes(self.head))

    def place(self, block: int) -> int:
        """Return the byte on the device of a block of the journal, as debugfs tells it."""
        return int(tool("debugfs", "-R", f"bmap <8> {block}", str(self.path))) * self.size

    def put(self, block: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(self.place(block))
            file.write(data.ljust(self.size, b"\0"))

    def next(self, data: bytes) -> None:
        self.put(self.at, data)
        self.at = self.at + 1 if self.at + 1 < self.last else 1

    def commit(self, sequence: int, blocks: int = 3, *, whole: bool = True) -> None:
        """Append a transaction of so many blocks; without its commit block if not `whole`."""
        self.next(struct.pack(">4I", MAGIC, REVOKE, sequence, 16))
        tags = b""
        for i in range(blocks):
            flags = (0 if i == 0 else 2) | (8 if i == blocks - 1 else 0)
            if self.features & CSUM_V3:
                tags += struct.pack(">4I", 100 + i, flags, 0, 0)
            else:
                tags += struct.pack(">IHH", 100 + i, 0, flags)
                tags += bytes(4 if self.features & WIDE else 0) + bytes(2 if self.features & CSUM_V2 else 0)
            tags += b"" if flags & 2 else b"u" * 16
        self.next(struct.pack(">3I", MAGIC, DESCRIPTOR, sequence) + tags)
        for i in range(blocks):
            self.next(b"data %d of %d" % (i, sequence))
        if whole:
            self.next(struct.pack(">3I", MAGIC, COMMIT, sequence))


@pytest.mark.parametrize("features", [0, WIDE, WIDE | CSUM_V2, WIDE | CSUM_V3, CSUM_V3 | FAST])
@pytest.mark.parametrize("options", ["-b 4096", "-b 1024 -O ^flex_bg", "-b 1024 -O ^extents,^64bit"])
def test_a_commit_behind_the_last_one_is_seen(tmp_path: Path, options: str, features: int) -> None:
    path = tmp_path / "disk"
    tool("mke2fs", "-q", "-F", "-t", "ext4", *options.split(), "-J", "size=16", str(path), "64M")
    length = 16 * MIB // (4096 if "4096" in options else 1024)
    for first in (1, length // 2, length - 12):  # the last one goes over the end of the ring
        log = HandMade(path, features, first)
        log.commit(7)
        before, start = filesystems.state(str(path)), hashlib.sha256(reader(path)(0, START_OF_DISK)).digest()
        assert before.identity and before.identity.log
        assert (before.identity.log.last_commit, before.identity.log.end) == (7, log.at)
        filesystems.check([FileSystem(Mounted(str(path), "/", "ext4", True), before)])
        log.commit(8)
        now = filesystems.state(str(path))
        assert hashlib.sha256(reader(path)(0, START_OF_DISK)).digest() == start and now.digest == before.digest
        assert now.identity and now.identity.journal == before.identity.journal
        assert f"log's end {before.identity.log.end} -> {log.at}, log's last commit 7 -> 8" in refused_as(
            path, before, "ext4"
        )


@pytest.mark.parametrize("what", ["half a transaction", "a fast commit"])
def test_what_is_written_without_a_commit_is_seen(tmp_path: Path, what: str) -> None:
    path = tmp_path / "disk"
    tool("mke2fs", "-q", "-F", "-t", "ext4", str(path), "64M")
    log = HandMade(path, WIDE | FAST)
    log.commit(7)
    before = filesystems.state(str(path))
    if what == "a fast commit":
        log.put(log.length - 3, b"tags")
    else:
        log.commit(8, whole=False)
    assert "(log's blocks)" in refused_as(path, before, "ext4")


def test_an_older_transaction_behind_the_log_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    tool("mke2fs", "-q", "-F", "-t", "ext4", str(path), "64M")
    log = HandMade(path, WIDE)
    log.commit(5)
    log.at = 1
    log.commit(7, blocks=1)
    found = ext4.identity(reader(path)).log
    assert found and (found.last_commit, found.end) == (7, 5)


@pytest.mark.parametrize("damage", [(0xC, 512), (0x10, 0), (0x14, 1 << 31), (0x1C, 1 << 31), (0x54, 1 << 30)])
def test_a_journal_that_cannot_be_true(tmp_path: Path, damage: tuple[int, int]) -> None:
    path = tmp_path / "disk"
    tool("mke2fs", "-q", "-F", "-t", "ext4", str(path), "16M")
    log = HandMade(path, FAST)
    struct.pack_into(">I", log.head, *damage)
    log.put(0, bytes(log.head))
    for look in (ext4.identity, ext4.has_journal_inside):
        with pytest.raises(FormatError, match="journal"):
            look(reader(path))


# --- XFS -----------------------------------------------------------------------------------------------------------


def log_of(path: Path) -> tuple[int, int]:
    """Return byte offset and length of an XFS's log, as xfs_db tells them."""
    told = tool("xfs_db", "-r", "-c", "sb 0", "-c", "print", str(path))
    value = dict(re.findall(r"^(\w+) = (\w+)$", told, re.MULTILINE))
    block = re.findall(r"\d+", tool("xfs_db", "-r", "-c", f"convert fsblock {value['logstart']} byte", str(path)))
    return int(block[-1]), int(value["logblocks"]) * int(value["blocksize"])


@pytest.fixture
def xfs_disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(320 * MIB)
    tool("mkfs.xfs", "-q", "-f", str(path))
    return path


def write_cycles(path: Path, cycle: int, end: int) -> None:
    """Number the blocks of the log: `cycle` before the block `end`, and one less from there on."""
    offset, length = log_of(path)
    data = b"".join(
        struct.pack(">II", 0xFEEDBABE, n) if i % 8 == 0 else struct.pack(">II", n, 0)
        for i, n in ((i, cycle - (i >= end)) for i in range(length // 512))
    )
    with path.open("r+b") as file:
        for i in range(length // 512):
            file.seek(offset + i * 512)
            file.write(data[i * 8 : i * 8 + 8])


@pytest.mark.parametrize(("cycle", "end"), [(1, 2), (3, 1000), (9, 1)])
def test_where_the_log_of_an_xfs_ends(xfs_disk: Path, cycle: int, end: int) -> None:
    write_cycles(xfs_disk, cycle, end)
    before = filesystems.state(str(xfs_disk))
    assert before.xfs and (before.xfs.cycle, before.xfs.end) == (cycle, end)
    write_cycles(xfs_disk, cycle, end + 8)
    assert filesystems.state(str(xfs_disk)).digest == before.digest
    assert f"(log's end {end} -> {end + 8})" in refused_as(xfs_disk, before, "xfs")


def test_a_record_that_is_half_written(xfs_disk: Path) -> None:
    write_cycles(xfs_disk, 3, 800)
    before = filesystems.state(str(xfs_disk))
    offset, _ = log_of(xfs_disk)
    with xfs_disk.open("r+b") as file:
        file.seek(offset + 900 * 512 + 100)
        file.write(b"new")
    assert "(log's blocks)" in refused_as(xfs_disk, before, "xfs")


def test_an_xfs_whose_log_is_elsewhere_and_one_that_cannot_be_true() -> None:
    head = bytearray(512)
    with pytest.raises(FormatError, match="no XFS"):
        xfs.identity(lambda offset, length: bytes(head))
    head[:8] = b"XFSB" + struct.pack(">I", 4096)
    assert xfs.identity(lambda offset, length: bytes(head)) is None
    assert not xfs.has_log_inside(lambda offset, length: bytes(head))
    struct.pack_into(">Q", head, 48, 1 << 40)
    with pytest.raises(FormatError, match="impossible log"):
        xfs.identity(lambda offset, length: bytes(head))


def test_a_superblock_of_former_times_that_points_past_the_end_is_none(tmp_path: Path, xfs_disk: Path) -> None:
    short = tmp_path / "short"
    short.write_bytes(reader(xfs_disk)(0, MIB))
    assert filesystems.state(str(short)).xfs is None


# --- a real kernel's writing ------------------------------------------------------------------------------------------


def changed_while_mounted(path: Path, folder: Path, change: Callable[[Path], None]) -> DiskState:
    """Mount `path`, and return its state before `change` wrote to it; a copy is left of what it was after."""
    folder.mkdir()
    done = subprocess.run(["mount", "-o", "loop", path, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"loop devices cannot be mounted here: {done.stderr.strip()}")
    try:
        for i in range(50):
            (folder / f"file{i}").write_bytes(b"x" * 5000)
        subprocess.run(["sync", "-f", folder], check=True)
        before = filesystems.state(str(path))
        change(folder)
        subprocess.run(["sync", "-f", folder], check=True)
        shutil.copy(path, path.with_suffix(".after"))
    finally:
        subprocess.run(["umount", folder], check=True)
    return before


def rename(folder: Path) -> None:
    (folder / "file1").rename(folder / "renamed")


def overwrite(folder: Path) -> None:
    with (folder / "file2").open("r+b") as file:
        file.write(b"changed in place")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("change", [rename, overwrite])
@pytest.mark.parametrize("make", ["mke2fs -q -F -t ext4", "mke2fs -q -F -t ext3", "mkfs.xfs -q -f"])
def test_what_a_kernel_writes_while_it_has_the_file_system_mounted(
    tmp_path: Path, make: str, change: Callable[[Path], None]
) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate((320 if "xfs" in make else 64) * MIB)
    tool(*make.split(), str(path))
    before = changed_while_mounted(path, tmp_path / "mounted", change)
    after = path.with_suffix(".after")
    now = filesystems.state(str(after))
    assert now.digest == before.digest, "the first 68 KiB tell; this test is of no use"
    if before.identity and now.identity:
        assert (now.identity.superblock, now.identity.journal) == (before.identity.superblock, before.identity.journal)
    assert "(log's end " in refused_as(after, before, make.split()[-1])
