"""What is mounted, and what is refused or named before the jump because its change would not be noticed."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from kjump.errors import TargetError
from kjump.hibernate import preflight
from kjump.host import root
from kjump.target import disks, mounts
from kjump.target.disks import FdDisk
from kjump.target.mounts import Sight
from kjump.target.states import Mounted

USUAL = """\
sysfs /sys sysfs rw,nosuid 0 0
tmpfs /run tmpfs rw 0 0
/dev/xfs / xfs rw,relatime 0 0
/dev/btrfs /home btrfs rw,subvol=/a 0 0
/dev/btrfs /srv btrfs rw,subvol=/b 0 0
/dev/loop0 /snap squashfs ro 0 0
/dev/sr0 /cd iso9660 rw 0 0
/dev/zram0 /tmp ext2 rw 0 0
overlay /merged overlay rw,lowerdir=/a 0 0
/dev/ro /boot/efi vfat ro 0 0
"""
SWAPS = "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n/file file 1 0 -3\n"


class Disks:
    """Two disks: /dev/xfs has a superblock whose log is in it, unless `outside`; /dev/zero has nothing."""

    outside = False

    def open(self, path: str, *, writable: bool) -> tuple[FdDisk, int]:
        if path not in ("/dev/xfs", "/dev/zero"):
            raise TargetError(f"target {path} cannot be opened: No such file or directory")
        head = bytearray(4096)
        if path == "/dev/xfs":
            head[:8] = b"XFSB" + struct.pack(">I", 4096)
            struct.pack_into(">Q", head, 48, 0 if self.outside else 8)
            struct.pack_into(">4I", head, 84, 1000, 4, 0, 100)
            head[124] = 10
        fd = os.memfd_create("disk")
        os.ftruncate(fd, 1 << 20)
        os.pwrite(fd, head, 0)
        return FdDisk(fd), 1 << 20


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mounts").write_text(USUAL)
    (tmp_path / "proc/swaps").write_text(SWAPS)
    with root.below(tmp_path), disks.used(Disks()):  # type: ignore[arg-type]
        yield tmp_path


def mount(machine: Path, line: str) -> None:
    (machine / "proc/self/mounts").write_text(USUAL + line + "\n")


def check(*accepted: str) -> preflight.Check:
    return preflight._file_systems(accepted)


def test_a_usual_machine_is_seen_whole(machine: Path) -> None:
    found = {risk.mounted.device: risk.sight for risk in mounts.risks()}
    assert found == {"/dev/xfs": Sight.SEEN, "/dev/btrfs": Sight.SEEN, "/dev/sda2": Sight.SEEN}
    assert check().ok and check().detail == "changes by another system would be noticed"
    assert mounts.refuse_unseen(()) == ""
    assert {m.device: m.writable for m in mounts.mounted()} == {
        "/dev/xfs": True,
        "/dev/btrfs": True,
        "/dev/loop0": False,
        "/dev/sr0": True,
        "/dev/ro": False,
        "/dev/sda2": True,
    }


@pytest.mark.parametrize(
    ("line", "kind", "words"),
    [
        ("tank/root /data zfs rw 0 0", "zfs", "zfs on tank/root (mounted at /data)"),
        ("UUID=1234 /b bcachefs rw 0 0", "bcachefs", "bcachefs on UUID=1234 (mounted at /b)"),
        ("/dev/a:/dev/b /b bcachefs rw 0 0", "bcachefs", "bcachefs on /dev/a:/dev/b (mounted at /b)"),
        ("/dev/sda1 /boot/efi vfat rw 0 0", "vfat", "vfat on /dev/sda1 (mounted at /boot/efi)"),
        ("/dev/sda1 /f f2fs rw 0 0", "f2fs", "f2fs on /dev/sda1 (mounted at /f)"),
        ("/dev/sda1 /w fuseblk rw 0 0", "fuseblk", "fuseblk on /dev/sda1 (mounted at /w)"),
        ("/dev/sda1 /w ntfs3 rw 0 0", "ntfs3", "ntfs3 on /dev/sda1"),
        ("/dev/sda1 /w new rw 0 0", "new", "new on /dev/sda1"),
        ("/dev/zero /e ext4 rw 0 0", "ext4", "ext4 on /dev/zero (mounted at /e, no ext4 superblock here)"),
        (r"/dev/sda1 /my\040disk vfat rw 0 0", "vfat", "vfat on /dev/sda1 (mounted at /my disk)"),
    ],
)
def test_what_changes_unseen_is_refused_by_name_or_accepted(
    machine: Path, monkeypatch: pytest.MonkeyPatch, line: str, kind: str, words: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    mount(machine, line)
    found = check()
    assert not found.ok and words in found.detail and found.remedy.endswith(f"--accept-unseen {kind}")
    with pytest.raises(TargetError, match="would not be noticed, and resuming would then destroy it; unmount"):
        mounts.refuse_unseen(())
    assert check(kind).ok and words in check(kind).detail and "(accepted)" in check(kind).detail
    assert words in mounts.refuse_unseen((kind,))
    mount(machine, line.replace(" rw ", " ro "))
    assert check().ok and mounts.refuse_unseen(()) == ""


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "virtiofs", "fuse.sshfs", "ceph"])
def test_what_is_kept_elsewhere_is_named(machine: Path, kind: str) -> None:
    mount(machine, f"share /net {kind} rw 0 0")
    assert check().ok and f"{kind} on share (mounted at /net): kept elsewhere" in check().detail
    assert "kept elsewhere" in mounts.refuse_unseen(())
    assert "share" not in [m.device for m in mounts.mounted()]


def test_an_xfs_whose_log_is_on_another_device(machine: Path) -> None:
    disks.current().outside = True  # type: ignore[attr-defined]
    assert "xfs on /dev/xfs (mounted at /, without a log in it)" in check().detail


def test_who_may_not_look_at_the_disk_takes_the_type_for_it(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount(machine, "/dev/gone /g ext4 rw 0 0")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert check().ok
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "/dev/gone cannot be opened" in check().detail


def test_many_are_counted_and_names_are_decoded(machine: Path) -> None:
    mount(machine, "\n".join(f"tank/{i} /t{i} zfs rw 0 0" for i in range(9)))
    assert "(mounted at /t2), and 6 more: a change" in check().detail
    mount(machine, r"/dev/a\134b /x\040y\011z ext3 ro 0 0")
    assert Mounted("/dev/a\\b", "/x y\tz", "ext3", False) in mounts.mounted()


def test_a_kernel_without_swap(machine: Path) -> None:
    (machine / "proc/swaps").unlink()
    assert "swap" not in [m.type for m in mounts.mounted()]
