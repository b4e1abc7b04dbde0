"""Which block device a name stands for, told without udev.

    /dev/sda2                                         what the kernel calls it
    UUID=... LABEL=... PARTUUID=... PARTLABEL=...     what it carries, or what its disk's partition table says
    PARTUUID=.../PARTNROFF=N                          the partition N places behind that one
    /dev/disk/by-uuid/... by-label, by-partuuid, by-partlabel   the same, with udev's escapes (\\x20)
    /dev/disk/by-id/...                               what /sys says of the disk; not all that udev asks it for
    /dev/mapper/NAME, /dev/GROUP/VOLUME               a device of the device mapper
    8:2, 0802, 0x802                                  its number, major:minor or hexadecimal as the kernel has it

A boot role has a /dev that the kernel made (devtmpfs) and nothing that makes links in it; so this reads signatures
(`formats.tags`, `formats.partitions`) and /sys. Of several devices with one name the first counts, as in the kernel,
but none that another device is made of: a member of a RAID carries what the RAID carries.

Sources: Documentation/admin-guide/kernel-parameters (root=), devices.txt, ABI/stable/sysfs-block; systemd's
documentation of the links below /dev/disk.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from kjump.errors import FormatError, TargetError
from kjump.formats import partitions, tags
from kjump.formats.cmdline import CommandLine
from kjump.formats.extentmap import BLOCK
from kjump.formats.superblock import SUPERBLOCK_SIZE, State, Superblock
from kjump.host import root
from kjump.target import disks
from kjump.target.device import Place, Target

AUTO = "auto"
"""In place of a name, for a boot: the disk that carries an image."""
_TAG = re.compile(r"(UUID|LABEL|PARTUUID|PARTLABEL)=(.+)", re.DOTALL)
_LINK = re.compile(r"/dev/disk/by-(uuid|label|partuuid|partlabel)/(.+)", re.DOTALL)
_OFFSET = re.compile(r"(.+)/PARTNROFF=(-?\d{1,4})")
_NUMBER = re.compile(r"(\d{1,7}):(\d{1,7})")
_HEXADECIMAL = re.compile(r"(?:0x)?([0-9a-fA-F]{3,8})")
_ESCAPES = re.compile(r"(?:\\x[0-9a-fA-F]{2})+")
_NOT_IN_LINKS = re.compile(r"[^0-9A-Za-z#+\-.:=@_]")
_BY_ID = ("virtio-", "wwn-", "nvme-", "dm-name-", "dm-uuid-", "mmc-", "ata-")
_OTHERWISE = "give UUID=, LABEL=, PARTUUID=, PARTLABEL= or the kernel's own name, such as /dev/sda2"


def find(name: str) -> str | None:
    """Return the device file of the device that is called `name`; None when there is none, or not yet.

    TargetError when it is no name at all, or one that only udev could tell.
    """
    if name.startswith("/dev/") and disks.current().is_there(name):
        return name
    return next(_devices(name), None)


def is_no_path(name: str) -> bool:
    """Tell whether `name` is one of those for a device that are not the path of a file."""
    return bool(_TAG.fullmatch(name) or _NUMBER.fullmatch(name))


def tags_of(path: str) -> tags.Tags | None:
    """Return type, UUID and label of what the device `path` carries; None when it is unknown or cannot be read."""
    with contextlib.suppress(TargetError), Target(path, writable=False) as device:
        return tags.read_tags(_reader(device))
    return None


def with_image(states: Collection[State], offset: int) -> list[str]:
    """Return the devices that have at byte `offset` the superblock of an image in one of the `states`."""
    return [path for path in disks.current().names() if _has_image(path, states, offset)]


def lasting_name(path: str) -> str:
    """Return the name by which a boot without udev finds the device `path`, which a user gave, once it holds an image.

    What such a boot can tell stays as it is, but for what is lost when an image is written (UUID and label of a file
    system). Else it is the PARTUUID, or without one what the kernel calls the device today.
    """
    if path.startswith("/dev/") and not _lost_when_written(path):
        with contextlib.suppress(TargetError):
            if _sys(path).is_dir() or next(_devices(path), None):
                return path
    real = f"/dev/{root.at(path).resolve().name}"
    if not _sys(real).is_dir():
        return path
    named = _partition(real)
    return f"PARTUUID={named.uuid}" if named else real


def boot_options(place: Place) -> tuple[str, ...]:
    """Return the kernel options with which a boot finds an image at `place`; PlanError as `Place.boot_options`."""
    return place.boot_options(lasting_name(place.device))


def leads_to(line: CommandLine, place: Place) -> bool:
    """Tell whether a boot with the command line `line` will find an image that is about to be written to `place`."""
    name, offset = line.get("kjump.resume"), line.get("kjump.resume_offset") or "0"
    if not name or offset != str(place.extents[0].start // BLOCK if place.extents else 0):
        return False
    if name == AUTO:
        return True
    if not place.extents and _lost_when_written(name):
        return False
    with contextlib.suppress(TargetError):
        found = find(name)
        return found is not None and root.at(found).resolve() == root.at(place.device).resolve()
    return False


def _lost_when_written(name: str) -> bool:
    """Tell whether `name` is what a file system is called, which an image on the device itself replaces."""
    found = _TAG.fullmatch(name) or _LINK.fullmatch(name)
    return bool(found and found[1].upper() in ("UUID", "LABEL"))


def _devices(name: str) -> Iterator[str]:
    """Go through the devices that `name` means; TargetError when it means nothing."""
    tag, link, number = _TAG.fullmatch(name), _LINK.fullmatch(name), _NUMBER.fullmatch(name)
    if tag:
        value = tag[2]
        quoted = len(value) > 1 and value[0] == value[-1] == '"'
        return _tagged(tag[1], value[1:-1] if quoted else value)
    if link:
        return _tagged(link[1].upper(), _unescaped(link[2]))
    if number:
        return _matching(lambda path: _attribute(path, "dev") == f"{int(number[1])}:{int(number[2])}")
    if hexadecimal := _HEXADECIMAL.fullmatch(name):
        return _matching(lambda path: _attribute(path, "dev") == _decoded(int(hexadecimal[1], 16)))
    if name.startswith("/dev/disk/by-id/"):
        return _with_id(name)
    if name.startswith("/dev/disk/"):
        raise TargetError(f"what {name} is only udev can tell, which does not run here: {_OTHERWISE}")
    if name.startswith("/dev/"):
        return _mapped(name.removeprefix("/dev/"))
    raise TargetError(f"{name!r} is not the name of a device: {_OTHERWISE}")


def _decoded(number: int) -> str:
    """Return major:minor of a device number as the kernel packs it (include/linux/kdev_t.h): 12 bits, and 8 + 12."""
    return f"{number >> 8 & 0xFFF}:{number & 0xFF | number >> 12 & 0xFFF00}"


def _matching(fits: Callable[[str], bool]) -> Iterator[str]:
    return (path for path in disks.current().names() if fits(path))


# --- what is on it ---------------------------------------------------------------------------------------------------


def _tagged(tag: str, value: str) -> Iterator[str]:
    if tag == "PARTUUID":
        return _with_partuuid(value)
    if tag == "PARTLABEL":
        return _matching(lambda path: bool((named := _partition(path)) and named.label == value))
    return _matching(lambda path: not _has_holders(path) and _carries(path, tag, value))


def _carries(path: str, tag: str, value: str) -> bool:
    found = tags_of(path)
    if found is None:
        return False
    return found.label == value if tag == "LABEL" else found.uuid.lower() == value.lower()


def _with_partuuid(value: str) -> Iterator[str]:
    offset = _OFFSET.fullmatch(value)
    wanted = (offset[1] if offset else value).lower()
    for path in disks.current().names():
        named = _partition(path)
        if named is None or named.uuid != wanted:
            continue
        if offset is None:
            yield path
        else:
            yield from _neighbours(path, int(offset[2]))


def _neighbours(path: str, places: int) -> Iterator[str]:
    number, disk = int(_attribute(path, "partition")) + places, _disk_of(path)
    return _matching(lambda other: _attribute(other, "partition") == str(number) and _disk_of(other) == disk)


def _partition(path: str) -> partitions.Partition | None:
    """Return how the partition `path` is named by its disk's table; None when it is no partition, or has no name."""
    number = _attribute(path, "partition")
    if not number.isdecimal():
        return None
    disk = _disk_of(path)
    sector = _attribute(disk, "queue/logical_block_size")
    with contextlib.suppress(TargetError), Target(disk, writable=False) as device:
        return partitions.name_of(_reader(device), int(number), int(sector) if sector.isdecimal() else 512)
    return None


def _has_image(path: str, states: Collection[State], offset: int) -> bool:
    try:
        with Target(path, writable=False) as device:
            superblock = Superblock.unpack(_reader(device)(offset, SUPERBLOCK_SIZE))
    except (TargetError, FormatError):
        return False
    return superblock.state in states and bool(superblock.map_length) == bool(offset)


def _reader(device: Target) -> tags.Reader:
    def read(offset: int, length: int) -> bytes:
        there = min(length, device.capacity - offset)
        return device.read(offset, there) if there > 0 else b""

    return read


# --- what /sys says of it --------------------------------------------------------------------------------------------


def _sys(path: str) -> Path:
    return root.at("/sys/class/block") / path.removeprefix("/dev/").replace("/", "!")


def _attribute(path: str, name: str) -> str:
    """Return an attribute of the device `path`, without blanks around it; empty when there is none."""
    try:
        return (_sys(path) / name).read_text("utf-8", "replace").strip(" \n\0")
    except OSError:
        return ""


def _disk_of(path: str) -> str:
    """Return the disk of which `path` is a partition: its folder in /sys lies in the disk's."""
    return "/dev/" + _sys(path).resolve().parent.name.replace("!", "/")


def _has_holders(path: str) -> bool:
    """Tell whether another device is made of this one."""
    try:
        return any((_sys(path) / "holders").iterdir())
    except OSError:
        return False


def _mapped(name: str) -> Iterator[str]:
    """Go through the mapped devices that are /dev/`name`; a logical volume is called by its group and its own name."""
    folder, _, rest = name.partition("/")
    if not rest:
        return iter(())
    wanted = _unescaped(rest) if folder == "mapper" else f"{folder.replace('-', '--')}-{rest.replace('-', '--')}"
    return _matching(lambda path: _attribute(path, "dm/name") == wanted)


def _with_id(name: str) -> Iterator[str]:
    wanted = name.removeprefix("/dev/disk/by-id/")
    if not wanted.startswith(_BY_ID):
        raise TargetError(f"what {name} is only udev can tell, which does not run here: {_OTHERWISE}")
    return _matching(lambda path: wanted in _ids(path))


def _ids(path: str) -> set[str]:
    """Return the names below /dev/disk/by-id that follow from what /sys says."""
    number = _attribute(path, "partition")
    disk, part = (_disk_of(path), f"-part{number}") if number else (path, "")
    return {_NOT_IN_LINKS.sub("_", found) + part for found in _disk_ids(disk)}


def _disk_ids(disk: str) -> Iterator[str]:
    kind = disk.removeprefix("/dev/")
    serial, model = _attribute(disk, "device/serial"), _attribute(disk, "device/model")
    wwid = _attribute(disk, "wwid") or _attribute(disk, "device/wwid")
    if kind.startswith("vd"):
        yield f"virtio-{_attribute(disk, 'serial')}"
    elif kind.startswith("nvme"):
        yield from (f"nvme-{wwid}", f"nvme-{_joined(model)}_{_joined(serial)}")
        yield f"nvme-{_joined(model)}_{_joined(serial)}_{_attribute(disk, 'nsid')}"
    elif kind.startswith("mmcblk"):
        yield f"mmc-{_attribute(disk, 'device/name')}_{serial}"
    elif kind.startswith("dm-"):
        yield from (f"dm-name-{_attribute(disk, 'dm/name')}", f"dm-uuid-{_attribute(disk, 'dm/uuid')}")
    elif wwid.startswith("naa."):
        yield f"wwn-0x{wwid.removeprefix('naa.')}"
    elif wwid.startswith("t10.ATA "):  # by SAT: 8 bytes of vendor, 40 of model, the rest is the serial number
        rest = wwid.removeprefix("t10.")[8:]
        yield f"ata-{_joined(rest[:40])}_{_joined(rest[40:])}"


def _joined(text: str) -> str:
    return "_".join(text.split())


def _unescaped(text: str) -> str:
    """Return `text` with udev's escapes, bytes in hexadecimal, put back."""
    return _ESCAPES.sub(lambda found: bytes.fromhex(found[0].replace("\\x", "")).decode("utf-8", "replace"), text)
