"""What a name for a device leads to, on machines with made-up disks and a made-up /sys."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from kjump.cli import arguments
from kjump.errors import HostError, TargetError
from kjump.formats import cmdline
from kjump.formats.superblock import State, Superblock
from kjump.host import root
from kjump.init import look_for
from kjump.init.roles import boot, mount_root
from kjump.init.system import Role
from kjump.ranges import Range
from kjump.target import disks, identify
from kjump.target.device import Place
from kjump.target.disks import FdDisk

ROOT_UUID = "01234567-89ab-4def-8123-456789abcdef"
PART_UUID = "33221100-5544-7766-8899-aabbccddeeff"
SIZE = 1 << 18


def ext4(name: str = ROOT_UUID, label: str = "my root") -> bytes:
    data = bytearray(SIZE)
    data[0x438:0x43A] = b"\x53\xef"
    data[0x460:0x464] = (0x40).to_bytes(4, "little")
    data[0x468:0x478] = bytes.fromhex(name.replace("-", ""))
    data[0x478 : 0x478 + len(label)] = label.encode()
    return bytes(data)


def xfs() -> bytes:
    return b"XFSB".ljust(32, b"\0") + bytes.fromhex(ROOT_UUID.replace("-", "")).ljust(SIZE - 32, b"\0")


def swap() -> bytes:
    return bytes(0xFF6) + b"SWAPSPACE2".ljust(SIZE - 0xFF6, b"\0")


def gpt(sector: int = 512) -> bytes:
    """Return a disk with one partition: number 2, PART_UUID, called "Root Disk"."""
    entry = (
        bytes([1]) * 16 + bytes(range(0, 0x100, 0x11)) + bytes(24) + "Root Disk".encode("utf-16-le").ljust(72, b"\0")
    )
    entries = (bytes(128) + entry).ljust(4 * 128, b"\0")

    def header(checksum: int) -> bytes:
        fields = (0x10000, 92, checksum, 0, 1, 99, 34, 90, bytes(16), 2, 4, 128, zlib.crc32(entries))
        return struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", *fields)

    data = bytearray(SIZE)
    data[510:512] = b"\x55\xaa"
    data[sector : sector + 92] = header(zlib.crc32(header(0)))
    data[2 * sector : 2 * sector + len(entries)] = entries
    return bytes(data)


def mbr() -> bytes:
    data = bytearray(SIZE)
    data[0x1B8:0x1BC], data[510:512] = bytes.fromhex("0100cdab"), b"\x55\xaa"
    return bytes(data)


def image(state: State = State.COMPLETE, map_length: int = 0) -> bytes:
    return Superblock(state=state, cookie=b"c" * 16, capacity=SIZE, map_length=map_length).pack().ljust(SIZE, b"\0")


@dataclass
class Machine:
    """Disks by their device files, and where the files of its kernel are."""

    folder: Path
    contents: dict[str, bytes] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)

    def add(self, name: str, data: bytes = bytes(SIZE), disk: str = "", **attributes: str) -> str:
        """Add a disk or, with `disk`, a partition of one; `attributes` are files in /sys, with __ for a slash."""
        here = self.folder / "sys/devices" / disk / name
        here.mkdir(parents=True)
        (here / "holders").mkdir()
        for key, value in attributes.items():
            file = here / key.replace("__", "/")
            file.parent.mkdir(exist_ok=True)
            file.write_text(value + "\n")
        (self.folder / "sys/class/block" / name).symlink_to(here)
        path = "/dev/" + name.replace("!", "/")
        self.contents[path] = data
        return path

    def open(self, path: str, *, writable: bool) -> tuple[FdDisk, int]:
        if path not in self.contents:
            raise TargetError(f"target {path} cannot be opened: No such file or directory")
        self.opened.append(path)
        fd = os.memfd_create("disk")
        os.write(fd, self.contents[path])
        return FdDisk(fd), len(self.contents[path])

    def names(self) -> Iterator[str]:
        return iter(self.contents)

    def is_there(self, path: str) -> bool:
        return path in self.contents

    def role(self, **options: str) -> Role:
        named = {key.replace("kjump_", "kjump."): value for key, value in options.items()}
        console = SimpleNamespace(line=self.lines.append)
        return Role(named, None, console, SimpleNamespace(send=lambda *_, **__: None, close=list))  # type: ignore[arg-type]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    (tmp_path / "sys/class/block").mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    made = Machine(tmp_path)
    monkeypatch.setattr(look_for, "TIMEOUT", 0.0)
    with root.below(tmp_path), disks.used(made):  # type: ignore[arg-type]
        yield made


def fill(machine: Machine) -> None:
    machine.add("sda", gpt(), dev="8:0", device__wwid="naa.5000c500a1b2c3d4")
    machine.add("sda2", ext4(), disk="sda", dev="8:2", partition="2")
    machine.add("sda3", disk="sda", dev="8:3", partition="3")
    machine.add("sdb", mbr(), dev="8:16", device__wwid="t10.ATA     QEMU HARDDISK                           QM00001")
    machine.add("sdb5", ext4("11" * 16, "data"), disk="sdb", dev="259:70000", partition="5")
    machine.add("vda", dev="254:0", serial="a disk")
    machine.add("nvme0n1", dev="259:0", device__model="Big SSD", device__serial="S1 ", nsid="1", wwid="eui.0025")
    machine.add("mmcblk0", dev="179:0", device__name="SC16G", device__serial="0x1234")
    machine.add("dm-0", dev="253:0", dm__name="my--group-root vol", dm__uuid="LVM-x")


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("/dev/sda2", "/dev/sda2"),
        (f"UUID={ROOT_UUID}", "/dev/sda2"),
        (f"UUID={ROOT_UUID.upper()}", "/dev/sda2"),
        (f'UUID="{ROOT_UUID}"', "/dev/sda2"),
        ("LABEL=my root", "/dev/sda2"),
        ("LABEL=data", "/dev/sdb5"),
        ("LABEL=DATA", None),
        (f"PARTUUID={PART_UUID}", "/dev/sda2"),
        (f"PARTUUID={PART_UUID.upper()}", "/dev/sda2"),
        (f"PARTUUID={PART_UUID}/PARTNROFF=1", "/dev/sda3"),
        (f"PARTUUID={PART_UUID}/PARTNROFF=2", None),
        ("PARTUUID=abcd0001-05", "/dev/sdb5"),
        ("PARTUUID=abcd0001-06", None),
        ("PARTLABEL=Root Disk", "/dev/sda2"),
        (f"/dev/disk/by-uuid/{ROOT_UUID}", "/dev/sda2"),
        (r"/dev/disk/by-label/my\x20root", "/dev/sda2"),
        (f"/dev/disk/by-partuuid/{PART_UUID}", "/dev/sda2"),
        (r"/dev/disk/by-partlabel/Root\x20Disk", "/dev/sda2"),
        ("/dev/disk/by-id/wwn-0x5000c500a1b2c3d4", "/dev/sda"),
        ("/dev/disk/by-id/wwn-0x5000c500a1b2c3d4-part2", "/dev/sda2"),
        ("/dev/disk/by-id/ata-QEMU_HARDDISK_QM00001-part5", "/dev/sdb5"),
        ("/dev/disk/by-id/virtio-a_disk", "/dev/vda"),
        ("/dev/disk/by-id/nvme-Big_SSD_S1", "/dev/nvme0n1"),
        ("/dev/disk/by-id/nvme-Big_SSD_S1_1", "/dev/nvme0n1"),
        ("/dev/disk/by-id/nvme-eui.0025", "/dev/nvme0n1"),
        ("/dev/disk/by-id/mmc-SC16G_0x1234", "/dev/mmcblk0"),
        ("/dev/disk/by-id/dm-uuid-LVM-x", "/dev/dm-0"),
        (r"/dev/mapper/my--group-root\x20vol", "/dev/dm-0"),
        ("/dev/my-group/root vol", "/dev/dm-0"),
        ("8:2", "/dev/sda2"),
        ("8:9", None),
        ("802", "/dev/sda2"),
        ("0x0802", "/dev/sda2"),
        (f"{(259 << 8) | (70000 & 0xFF) | (70000 & ~0xFF) << 12:x}", "/dev/sdb5"),
        ("/dev/none", None),
    ],
)
def test_a_name_leads_to_its_device(machine: Machine, name: str, device: str | None) -> None:
    fill(machine)
    assert identify.find(name) == device


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/dev/disk/by-path/pci-0000:00:1f.2-ata-1", "only udev can tell"),
        ("/dev/disk/by-id/usb-Stick", "only udev can tell"),
        ("sda2", "is not the name of a device"),
        ("UUID=", "is not the name of a device"),
        ("", "is not the name of a device"),
    ],
)
def test_a_name_that_cannot_be_told_is_said_at_once(machine: Machine, name: str, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        identify.find(name)


def test_disks_with_blocks_of_4096_bytes(machine: Machine) -> None:
    machine.add("sda", gpt(4096), queue__logical_block_size="4096")
    machine.add("sda2", disk="sda", partition="2")
    assert identify.find(f"PARTUUID={PART_UUID}") == "/dev/sda2"


def test_what_another_device_is_made_of_is_not_meant(machine: Machine) -> None:
    machine.add("sda", ext4())
    machine.add("md0", ext4())
    (machine.folder / "sys/class/block/sda/holders/md0").touch()
    assert identify.find("LABEL=my root") == "/dev/md0"


# --- where a boot finds an image -----------------------------------------------------------------------------------


def test_an_image_is_found_by_its_signature(machine: Machine) -> None:
    fill(machine)
    assert identify.with_image((State.COMPLETE,), 0) == []
    machine.add("sdc", image())
    machine.add("sdd", image(State.CONSUMED))
    machine.add("sde", bytes(8192) + image(map_length=4096)[: SIZE - 8192])
    machine.add("sdf", b"KJUMPIMG".ljust(100, b"\1"))
    assert identify.with_image((State.COMPLETE,), 0) == ["/dev/sdc"]
    assert identify.with_image((State.COMPLETE,), 8192) == ["/dev/sde"]
    assert identify.with_image((State.COMPLETE,), 1 << 80) == []


@pytest.mark.parametrize("name", ["auto", "/dev/none", "/dev/disk/by-path/x", "UUID=gone"])
def test_a_boot_looks_on_all_disks_when_nothing_has_the_name(machine: Machine, name: str) -> None:
    fill(machine)
    machine.add("sdc", image())
    places = look_for.look_for(machine.role(root="/dev/sda2"), name, (State.COMPLETE,), 0)
    assert places == look_for.Places(("/dev/sdc",), searched=True)
    assert machine.lines == [] if name == "auto" else "but there is an image on /dev/sdc" in machine.lines[0]


def test_a_name_narrows_the_choice(machine: Machine) -> None:
    machine.add("sda", image())
    machine.add("sdb", image())
    places = look_for.look_for(machine.role(), "/dev/sdb", (State.COMPLETE,), 0)
    assert places == look_for.Places(("/dev/sdb",), searched=False)


@pytest.mark.parametrize(
    ("name", "words"), [("auto", "no image on any disk"), ("/dev/none", "/dev/none does not appear")]
)
def test_nothing_to_resume_is_said(machine: Machine, name: str, words: str) -> None:
    fill(machine)
    with pytest.raises(look_for.NotThereError, match=words):
        look_for.look_for(machine.role(root="/dev/sda2"), name, (State.COMPLETE,), 0)


def test_auto_waits_for_an_image_no_longer_than_for_the_root(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look_for, "TIMEOUT", 60.0)
    monkeypatch.setattr(look_for.time, "sleep", lambda _: machine.add("vda") and machine.add("vdb", image()))
    assert look_for.look_for(machine.role(root="/dev/vda"), "auto", (State.COMPLETE,), 0).devices == ("/dev/vdb",)
    machine.contents["/dev/vdb"] = bytes(SIZE)
    monkeypatch.setattr(look_for.time, "sleep", lambda _: pytest.fail("it waits"))
    with pytest.raises(look_for.NotThereError):
        look_for.look_for(machine.role(root="/dev/vda"), "auto", (State.COMPLETE,), 0)


@pytest.mark.parametrize(("said", "seconds"), [("", 5.0), ("2", 5.0), ("30", 30.0), ("x", 5.0), ("9" * 9, 5.0)])
def test_rootdelay_says_how_long_to_wait(
    said: str, seconds: float, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look_for, "TIMEOUT", 5.0)
    assert look_for.patience(machine.role(rootdelay=said)) == seconds


def resume_from(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, refusals: dict[str, Exception], **options: str
) -> str:
    """Boot with images that are refused with `refusals`; return what was given up."""
    given_up: list[str] = []

    def refuse(target: object) -> None:
        if target in refusals:
            raise refusals[str(target)]

    class Opened(str):
        __slots__ = ()

        def __enter__(self) -> str:
            return str(self)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(boot, "open_at", lambda path, offset, writable: Opened(path))
    monkeypatch.setattr(boot, "open_for_resume", refuse)
    monkeypatch.setattr(boot, "_resume", lambda role, target, opened, report: given_up.append(f"resumed {target}"))
    monkeypatch.setattr(boot, "uptime", lambda: 1.0)
    monkeypatch.setattr(boot, "_invalidate", lambda role, path, why: given_up.append(path))
    boot._try_to_resume(machine.role(kjump_resume="auto", **options), "auto")
    return " ".join(given_up)


def test_of_several_images_those_are_given_up_that_are_this_machines(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sda", "sdb"):
        machine.add(name, image())
    other, changed = boot.OtherMachineError("another memory map"), boot.ImageError("has changed")
    assert resume_from(machine, monkeypatch, {"/dev/sda": other, "/dev/sdb": changed}) == "/dev/sdb"
    assert "kjump: the image on /dev/sda is left as it is: nobody named it" in machine.lines
    assert resume_from(machine, monkeypatch, {"/dev/sda": changed}).startswith("/dev/sda resumed /dev/sdb")


def test_a_boot_that_must_not_resume_gives_up_what_it_finds(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.add("sda", image())
    machine.add("sdb", image())
    refusals: dict[str, Exception] = {"/dev/sda": boot.OtherMachineError("another memory map")}
    assert resume_from(machine, monkeypatch, refusals, kjump_noresume="") == "/dev/sdb"


def test_one_of_several_snapshots_must_be_named(machine: Machine) -> None:
    machine.add("sda", image(State.SNAPSHOT))
    machine.add("sdb", image(State.SNAPSHOT))
    boot._try_to_roll_back(machine.role(), "auto")
    assert "there are snapshots on /dev/sda, /dev/sdb: name one of them" in machine.lines[0]


# --- the root file system ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "wanted", "kinds"),
    [
        (ext4(), "", ("ext4",)),
        (xfs(), "", ("xfs",)),
        (xfs(), "btrfs", ("btrfs",)),
        (xfs(), "ext4,xfs", ("ext4", "xfs")),
        (bytes(SIZE), "", ("ext3", "vfat")),
        (ext4()[:0x460] + bytes(4) + ext4()[0x464:], "", ("ext4", "ext2")),
    ],
)
def test_the_type_is_told_by_signature(machine: Machine, data: bytes, wanted: str, kinds: tuple[str, ...]) -> None:
    (machine.folder / "proc").mkdir()
    (machine.folder / "proc/filesystems").write_text("nodev\tsysfs\n\text3\n\tvfat\n")
    assert mount_root.kinds(machine.add("sda", data), wanted) == kinds


def test_what_is_no_file_system_is_said(machine: Machine) -> None:
    with pytest.raises(HostError, match="carries swap space, not a file system"):
        mount_root.kinds(machine.add("sda", swap()), "")


@pytest.mark.parametrize(
    ("line", "flags", "data"),
    [
        ("", 1, ""),
        ("ro", 1, ""),
        ("rw", 0, ""),
        ("rw quiet ro", 1, ""),
        ("ro rw ro", 1, ""),
        ("rw ro rw", 0, ""),
        ("rw rootflags=noatime,subvol=@,x-systemd.x,discard,user_xattr", 1024, "subvol=@,discard,user_xattr"),
        ("rw rootflags=ro,noatime,relatime", 1 | 1024 | 1 << 21, ""),
        ("rootflags=rw,defaults,nofail", 0, ""),
    ],
)
def test_mount_flags_are_those_that_the_kernel_would_take(line: str, flags: int, data: str) -> None:
    assert mount_root.mount_flags(cmdline.parse(line).options()) == (flags, data)


def mounting(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, errors: list[int], **options: str
) -> list[tuple[str, int]]:
    """Boot as usual; mount(2) fails with `errors` one after the other. Return the types and flags that were tried."""
    tried: list[tuple[str, int]] = []

    def mount(device: str, where: str, kind: str, flags: int, data: str) -> None:
        tried.append((kind, flags))
        if errors:
            number = errors.pop(0)
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(mount_root, "mount", mount)
    monkeypatch.setattr(mount_root, "switch_root", lambda where, init: None)
    monkeypatch.setattr(mount_root, "uptime", lambda: 1.0)
    mount_root.boot_as_usual(machine.role(**options))
    return tried


def test_the_root_is_mounted_read_only_unless_told_otherwise(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(machine)
    name = f"UUID={ROOT_UUID}"
    assert mounting(machine, monkeypatch, [], root=name) == [("ext4", 1)]
    assert mounting(machine, monkeypatch, [], root=name, rw="") == [("ext4", 0)]


def test_other_types_and_write_protection(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(machine)
    types = {"root": "/dev/sda2", "rootfstype": "xfs,ext4", "rw": ""}
    assert mounting(machine, monkeypatch, [22, 30], **types) == [("xfs", 0), ("ext4", 0), ("ext4", 1)]
    with pytest.raises(
        HostError, match=r"the root device /dev/sda2 cannot be mounted as xfs or ext4: Input/output error"
    ):
        mounting(machine, monkeypatch, [5], **types)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("UUID=gone", "the root device UUID=gone does not appear"),
        ("/dev/disk/by-path/x", "the root device cannot be told: what /dev/disk/by-path/x is only udev can tell"),
    ],
)
def test_a_root_that_is_not_found(machine: Machine, name: str, words: str) -> None:
    with pytest.raises(HostError, match=words):
        mount_root.boot_as_usual(machine.role(root=name))


def test_rootwait_waits(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([None, None, None, "/dev/sda2"])
    monkeypatch.setattr(mount_root, "wait_for_device", lambda name, timeout: next(answers))
    assert mounting(machine, monkeypatch, [], root="LABEL=x", rootfstype="xfs", rootwait="") == [("xfs", 1)]
    assert machine.lines == ["kjump: waiting for the root device LABEL=x (rootwait)"]


# --- what users are told, and what they may say -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/dev/sda2", "/dev/sda2"),
        (f"/dev/disk/by-partuuid/{PART_UUID}", f"/dev/disk/by-partuuid/{PART_UUID}"),
        ("/dev/disk/by-id/wwn-0x5000c500a1b2c3d4-part2", "/dev/disk/by-id/wwn-0x5000c500a1b2c3d4-part2"),
        (f"/dev/disk/by-uuid/{ROOT_UUID}", f"PARTUUID={PART_UUID}"),
        ("/dev/disk/by-id/usb-Stick-part2", f"PARTUUID={PART_UUID}"),
        ("/dev/disk/by-id/usb-Whole", "/dev/vda"),
    ],
)
def test_a_boot_is_told_a_name_that_it_can_tell(machine: Machine, path: str, name: str) -> None:
    fill(machine)
    link = machine.folder / path.lstrip("/")
    if path.startswith("/dev/disk"):
        link.parent.mkdir(parents=True)
        real = "vda" if path.endswith("Whole") else "sda2"
        (machine.folder / "dev" / real).touch()
        link.symlink_to(f"../../{real}")
        machine.contents[path] = machine.contents[f"/dev/{real}"]
    assert identify.boot_options(Place(path)) == (f"kjump.resume={name}",)


FILE = (Range(8192, 16384),)


@pytest.mark.parametrize(
    ("line", "extents", "leads"),
    [
        ("kjump.resume=/dev/sda2", (), True),
        ("kjump.resume=auto", (), True),
        (f"kjump.resume=PARTUUID={PART_UUID}", (), True),
        (f"kjump.resume=UUID={ROOT_UUID}", (), False),
        ("kjump.resume=/dev/sdb", (), False),
        ("kjump.resume=/dev/disk/by-path/x", (), False),
        ("quiet", (), False),
        ("kjump.resume=/dev/sda2 kjump.resume_offset=2", (), False),
        ("kjump.resume=/dev/sda2 kjump.resume_offset=2", FILE, True),
        (f"kjump.resume=UUID={ROOT_UUID} kjump.resume_offset=2", FILE, True),
        ("kjump.resume=/dev/sda2 kjump.resume_offset=3", FILE, False),
        ("kjump.resume=/dev/sda2", FILE, False),
    ],
)
def test_whether_a_boot_will_find_an_image(
    machine: Machine, line: str, extents: tuple[Range, ...], leads: bool
) -> None:
    fill(machine)
    assert identify.leads_to(cmdline.parse(line), Place("/dev/sda2", extents)) is leads


def test_users_may_name_a_device_in_all_these_ways(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(machine)
    context, parameter = click.Context(click.Command("x")), click.Option(["--to"])

    def named(name: str | None) -> str | None:
        return arguments.target_named(context, parameter, name)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert named(f"PARTUUID={PART_UUID}") == named("8:2") == "/dev/sda2"
    assert named(r"/dev/disk/by-label/my\x20root") == "/dev/sda2"
    assert named("/var/lib/kjump/image") == "/var/lib/kjump/image" and named("802") == "802" and named(None) is None
    with pytest.raises(TargetError, match="there is no block device UUID=x"):
        named("UUID=x")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(HostError, match="only root"):
        named("UUID=x")
