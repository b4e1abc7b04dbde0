"""Target files: which are taken, and that their blocks on the device are what the file holds."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kjump.errors import FormatError, ImageError, TargetError
from kjump.formats import extentmap
from kjump.formats.extentmap import BLOCK
from kjump.formats.record import Record
from kjump.formats.superblock import SUPERBLOCK_SIZE, State, Superblock
from kjump.ranges import Range
from kjump.target import disks
from kjump.target import file as target_file
from kjump.target.device import Place, Target, open_at
from kjump.target.file import FileTarget, create

MOUNTS = """\
22 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw,errors=remount-ro
23 22 0:20 / /proc rw - proc proc rw
24 22 0:30 / /tmp rw shared:2 master:1 - tmpfs tmpfs rw
25 22 253:0 / /home rw - ext4 /dev/mapper/home rw
26 22 8:3 / /srv rw - ext4 /dev/sda3 rw,data=journal
27 22 8:4 / /old rw - xfs /dev/sda4 rw
"""


@pytest.mark.parametrize(
    ("device", "place", "words"),
    [
        ((0, 30), "", "is on tmpfs"),
        ((8, 4), "/sys/devices/pci0/ata1/block/sda/sda4", "is on xfs"),
        ((8, 9), "", "an unknown file system"),
        ((8, 3), "/sys/devices/pci0/ata1/block/sda/sda3", "data=journal"),
        ((253, 0), "/sys/devices/virtual/block/dm-0", "is on device mapper .*, dm-0"),
        ((8, 2), "/sys/devices/virtual/block/loop3", "is on a loop device, loop3"),
        ((8, 2), "/sys/devices/virtual/block/md127/md127p1", "software RAID"),
        ((8, 2), "/sys/devices/virtual/block/nbd0", "network block device"),
        ((8, 2), "/sys/devices/platform/host3/session1/target3:0:0/3:0:0:1/block/sdb/sdb1", "iSCSI"),
    ],
)
def test_where_a_target_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: tuple[int, int], place: str, words: str
) -> None:
    with pytest.raises(TargetError, match=words):
        device_of(tmp_path, monkeypatch, device, place)


def test_a_partition_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_of(tmp_path, monkeypatch, (8, 2), "/sys/devices/pci0/ata1/block/sda/sda2") == "/dev/sda2"


def device_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: tuple[int, int], place: str) -> str:
    """Ask for the device of a file that lies on `device` (major, minor), found at `place` in /sys."""
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(MOUNTS)
    monkeypatch.setattr(target_file, "MOUNTINFO", mountinfo)
    monkeypatch.setattr(os, "fstat", lambda _: os.stat_result((0, 0, os.makedev(*device), 1, 0, 0, 0, 0, 0, 0)))
    monkeypatch.setattr(os.path, "realpath", lambda _: place)
    monkeypatch.setattr(os.path, "exists", lambda _: True)
    return target_file._device_of(0, "/some/file")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A target file of 1 MiB; the device below it is this machine's own and left alone (tests/lab looks at it).

    /tmp is often memory: then it is made in /var/tmp, or beside the tests.
    """
    monkeypatch.setattr(FileTarget, "check_on_device", lambda _: None)
    refusals = []
    for parent in (tmp_path, Path("/var/tmp"), Path(__file__).parent):
        with contextlib.ExitStack() as cleanup:
            try:
                folder = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="kjump-", dir=parent))
                path = Path(folder, "target")
                create(str(path), 1 << 20).close()
            except OSError as error:
                refusals.append(str(error))
            except TargetError as error:
                if "a target file must be on" not in str(error):
                    raise
                refusals.append(str(error))
            else:
                yield path
                return
    pytest.skip(f"{'; '.join(refusals)}; run with --basetemp on an ext4 to force this")


def test_a_file_is_made_armed_and_used(file: Path) -> None:
    with FileTarget(file) as made:
        assert made.capacity == file.stat().st_size == 1 << 20
        assert made.read_superblock().state is State.EMPTY
        made.refuse_if_it_carries_something()
        superblock = made.arm()
        assert superblock.state is State.ARMED and superblock.generation == 1
        noise = random.Random(1).randbytes(5 * BLOCK)
        made.write(superblock.image_offset, noise)
    data = file.read_bytes()
    assert Superblock.unpack(data[:SUPERBLOCK_SIZE]) == superblock
    map_end = SUPERBLOCK_SIZE + superblock.map_length
    assert extentmap.unpack(data[SUPERBLOCK_SIZE:map_end], superblock.cookie) == made.place.extents
    assert data[map_end:].rstrip(b"\0") == noise.rstrip(b"\0")


def test_a_file_that_is_held_stays_as_it_is(file: Path) -> None:
    with FileTarget(file) as held:
        held.hold()
        with pytest.raises(BlockingIOError):
            os.open(file, os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK)
    with file.open("rb"), FileTarget(file) as other, pytest.raises(TargetError, match="open in another program"):
        other.hold()


def test_a_copy_is_not_taken_for_the_file(file: Path) -> None:
    copy = file.parent / "copy"
    copy.write_bytes(file.read_bytes())
    with FileTarget(copy) as moved, pytest.raises(TargetError, match="has moved on its device since it was made"):
        moved.refuse_if_it_carries_something()


def test_files_that_are_no_targets(file: Path) -> None:
    with pytest.raises(TargetError, match="File exists"):
        create(str(file), 1 << 20)
    with pytest.raises(TargetError, match="too small"):
        create(str(file.parent / "small"), 4096)
    with pytest.raises(TargetError, match=r"No space left|File too large"):
        create(str(file.parent / "huge"), 1 << 50)
    assert not (file.parent / "huge").exists()

    sparse = file.parent / "sparse"
    sparse.touch()
    os.truncate(sparse, 1 << 20)
    with pytest.raises(TargetError, match="has a hole at byte 0"):
        FileTarget(sparse)
    allocated = file.parent / "allocated"
    with allocated.open("wb") as out:
        os.posix_fallocate(out.fileno(), 0, 1 << 20)
    with pytest.raises(TargetError, match="is unwritten at byte 0"):
        FileTarget(allocated)
    other = file.parent / "other"
    other.write_bytes(b"a letter".ljust(1 << 20))
    with FileTarget(other) as something, pytest.raises(TargetError, match="holds something else"):
        something.refuse_if_it_carries_something()
    (file.parent / "odd").write_bytes(b"x" * 5000)
    with pytest.raises(TargetError, match="not a multiple of 4096"):
        FileTarget(file.parent / "odd")


def test_reading_and_writing_through_extents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target in five pieces, in disorder, against the same bytes in one."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(64 * BLOCK))
    monkeypatch.setattr(disks, "_device_size", lambda fd, _: os.fstat(fd).st_size)
    order = [(40, 3), (0, 1), (10, 7), (50, 2), (2, 1)]
    extents = tuple(Range.of_size(start * BLOCK, count * BLOCK) for start, count in order)
    plain = bytearray(14 * BLOCK)
    random_ = random.Random(2)
    try:
        opened = Target(disk, writable=True, extents=extents)
    except TargetError:
        pytest.skip(f"no O_DIRECT on {tmp_path}: run with --basetemp on a disk")
    with opened:
        assert opened.capacity == len(plain)
        for _ in range(60):
            at, count = random_.randrange(14), random_.randint(1, 14)
            data = random_.randbytes(min(count, 14 - at) * BLOCK)
            opened.write(at * BLOCK, data)
            plain[at * BLOCK : at * BLOCK + len(data)] = data
            start = random_.randrange(len(plain))
            length = random_.randint(0, len(plain) - start)
            assert opened.read(start, length) == plain[start : start + length]
        with pytest.raises(TargetError, match="ends before byte"):
            opened.read(13 * BLOCK, BLOCK + 1)
        with pytest.raises(TargetError, match="ends before byte"):
            opened.write(13 * BLOCK, bytes(2 * BLOCK))
    with pytest.raises(TargetError, match="too few to hold the target"):
        Target(disk, writable=False, extents=(Range(0, 65 * BLOCK),))


def test_a_place_travels() -> None:
    place = Place("/dev/sda2", (Range(0, 4096), Range(8192, 12288)))
    assert Place.from_json(Record(place.to_json(), "a place")) == place


def test_a_map_that_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(64 * BLOCK))
    monkeypatch.setattr(disks, "_device_size", lambda fd, _: os.fstat(fd).st_size)
    extents = (Range(8 * BLOCK, 20 * BLOCK), Range(4 * BLOCK, 5 * BLOCK))
    try:
        with Target(disk, writable=True, extents=extents) as made:
            made.arm()
    except TargetError:
        pytest.skip(f"no O_DIRECT on {tmp_path}: run with --basetemp on a disk")
    with open_at(str(disk), 8 * BLOCK, writable=False) as found:
        assert found.extents == extents
    data = bytearray(disk.read_bytes())
    data[30 * BLOCK : 42 * BLOCK] = data[8 * BLOCK : 20 * BLOCK]
    disk.write_bytes(data)
    with pytest.raises(ImageError, match="block 30: this is a copy of a target file"):
        open_at(str(disk), 30 * BLOCK, writable=False)
    with pytest.raises(ImageError, match="block 21: no kjump image here"):
        open_at(str(disk), 21 * BLOCK, writable=False)
    data[9 * BLOCK + 40] ^= 1
    disk.write_bytes(data)
    with pytest.raises(ImageError, match=r"block 8: the extent map .* is damaged"):
        open_at(str(disk), 8 * BLOCK, writable=False)
    with pytest.raises(FormatError), Target(disk, writable=False) as raw:
        raw.read_superblock()
