"""By what a file system, swap space or an encrypted volume is named: its type, UUID and label.

Types are written as mount(8) and libblkid write them, UUIDs and labels as libblkid prints them, so that `UUID=` and
`LABEL=` mean here what they mean elsewhere. Offsets are in bytes from the start of the device.

Sources, one for each format: the kernel's Documentation/filesystems (ext4, f2fs, erofs), "XFS Algorithms & Data
Structures", the Btrfs on-disk format (btrfs.readthedocs.io), Microsoft's "FAT: General Overview of On-Disk Format",
the LUKS1 and LUKS2 on-disk format specifications, ECMA-119 (ISO 9660), mkswap(8) with include/linux/swap.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

LENGTH = 0x11000
"""Bytes from the start of a device that hold all superblocks looked for."""

Reader = Callable[[int, int], bytes]
"""Called with (byte offset, length): bytes of the device, fewer where it ends."""

_MOST_DIRECTORY = 1 << 18
"""Bytes of a FAT's root directory that are searched for the label, which is one of its first entries."""
_ENTRY = 32
_NO_NAME = "NO NAME"


@dataclass(frozen=True)
class Tags:
    """The type (`kind`), UUID and label of what a device carries; empty when the format has none, or it is not set."""

    kind: str
    uuid: str = ""
    label: str = ""


def read_tags(read: Reader) -> Tags | None:
    """Return what the device behind `read` carries, or None when it is nothing known here."""
    head = read(0, LENGTH)
    for probe in (_luks, _xfs, _btrfs, _f2fs, _erofs, _squashfs, _swap, _ext, _iso9660):
        found = probe(head)
        if found is not None:
            return found
    return _fat(head, read)


def uuid_text(data: bytes) -> str:
    """Return the 16 bytes of a UUID as they are written (RFC 9562); empty when they are zeros, or cut off."""
    digits = data.hex()
    at = (0, 8, 12, 16, 20, 32)
    return "-".join(digits[a:b] for a, b in pairwise(at)) if len(data) == 16 and any(data) else ""


def _text(data: bytes, encoding: str = "utf-8") -> str:
    return data.decode(encoding, "replace").partition("\0")[0].rstrip()


def _has(head: bytes, offset: int, magic: bytes) -> bool:
    return head[offset : offset + len(magic)] == magic


def _luks(head: bytes) -> Tags | None:
    """LUKS: magic at 0, version (big endian) at 6, UUID as text at 168; LUKS2 has a label at 24."""
    if not _has(head, 0, b"LUKS\xba\xbe") or len(head) < 208:
        return None
    label = _text(head[24:72]) if int.from_bytes(head[6:8], "big") == 2 else ""
    return Tags("crypto_LUKS", _text(head[168:208]), label)


def _xfs(head: bytes) -> Tags | None:
    """XFS: magic at 0, sb_uuid at 32, sb_fname at 108."""
    return Tags("xfs", uuid_text(head[32:48]), _text(head[108:120])) if _has(head, 0, b"XFSB") else None


def _btrfs(head: bytes) -> Tags | None:
    """Btrfs: superblock at 64 KiB; in it fsid at 0x20, magic at 0x40, label at 0x12b."""
    if not _has(head, 0x10040, b"_BHRfS_M"):
        return None
    return Tags("btrfs", uuid_text(head[0x10020:0x10030]), _text(head[0x1012B:0x1022B]))


def _f2fs(head: bytes) -> Tags | None:
    """F2FS: superblock at 1 KiB; in it uuid at 0x6c, volume_name (UTF-16, little endian) at 0x7c."""
    if not _has(head, 0x400, b"\x10\x20\xf5\xf2"):
        return None
    return Tags("f2fs", uuid_text(head[0x46C:0x47C]), _text(head[0x47C : 0x47C + 1024], "utf-16-le"))


def _erofs(head: bytes) -> Tags | None:
    """EROFS: superblock at 1 KiB; in it uuid at 48, volume_name at 64."""
    if not _has(head, 0x400, b"\xe2\xe1\xf5\xe0"):
        return None
    return Tags("erofs", uuid_text(head[0x430:0x440]), _text(head[0x440:0x450]))


def _squashfs(head: bytes) -> Tags | None:
    """SquashFS has neither UUID nor label."""
    return Tags("squashfs") if _has(head, 0, b"hsqs") else None


def _swap(head: bytes) -> Tags | None:
    """Swap space with pages of 4 KiB: magic at the end of the first page, UUID at 0x40c, label at 0x41c.

    While it holds an image of the kernel's own hibernation it has another magic, and its UUID all the same.
    """
    for magic, kind in ((b"SWAPSPACE2", "swap"), (b"S1SUSPEND", "swsuspend")):
        if _has(head, 0xFF6, magic):
            return Tags(kind, uuid_text(head[0x40C:0x41C]), _text(head[0x41C:0x42C]))
    return None


_HAS_JOURNAL, _JOURNAL_DEVICE = 0x4, 0x8
_EXT3_INCOMPATIBLE = 0x2 | 0x4 | 0x10
"""filetype, needs recovery, meta_bg: what an ext3 may have of the features that old kernels refuse."""
_EXT3_READ_ONLY = 0x1 | 0x2 | 0x4
"""sparse_super, large_file, btree_dir: likewise of those with which old kernels only read."""


def _ext(head: bytes) -> Tags | None:
    """ext2, ext3 and ext4: superblock at 1 KiB, see `formats.ext4`; which it is depends on its features."""
    if not _has(head, 0x438, b"\x53\xef") or len(head) < 0x800 or int.from_bytes(head[0x418:0x41C], "little") > 6:
        return None
    compatible, incompatible, read_only = struct.unpack_from("<III", head, 0x45C)
    if incompatible & _JOURNAL_DEVICE:
        kind = "jbd"
    elif incompatible & ~_EXT3_INCOMPATIBLE or read_only & ~_EXT3_READ_ONLY:
        kind = "ext4"
    else:
        kind = "ext3" if compatible & _HAS_JOURNAL else "ext2"
    return Tags(kind, uuid_text(head[0x468:0x478]), _text(head[0x478:0x488]))


def _iso9660(head: bytes) -> Tags | None:
    """ISO 9660: primary volume descriptor at 32 KiB; in it the volume's name at 40, times as digits at 813 and 830.

    libblkid makes the UUID of the time of the last change, or of making when that is not set. It takes the label from
    a Joliet descriptor if there is one, which may be longer; that one is not read here.
    """
    volume = head[0x8000:0x8800]
    if not _has(volume, 0, b"\x01CD001") or len(volume) < 2048:
        return None
    for at in (830, 813):
        digits = volume[at : at + 16].decode("ascii", "replace")
        if digits.isdecimal() and digits.strip("0"):
            pieces = (digits[:4], *(digits[i : i + 2] for i in range(4, 16, 2)))
            return Tags("iso9660", "-".join(pieces), _text(volume[40:72]))
    return Tags("iso9660", "", _text(volume[40:72]))


@dataclass(frozen=True)
class _Fat:
    """Where the parts of a FAT lie, in bytes; `root_cluster` is 0 where the root directory has a place of its own."""

    cluster: int
    table: int
    root: int
    root_size: int
    data: int
    root_cluster: int


def _fat(head: bytes, read: Reader) -> Tags | None:
    """FAT12, FAT16, FAT32: serial number at 0x27 or 0x43; the label is an entry of the root directory."""
    if len(head) < 512 or not _has(head, 0x1FE, b"\x55\xaa"):
        return None
    old, fat32 = head[0x36:0x39] == b"FAT", head[0x52:0x57] == b"FAT32"
    shape = _fat_shape(head, fat32=fat32) if old or fat32 else None
    if shape is None:
        return None
    serial = int.from_bytes(head[0x43:0x47] if fat32 else head[0x27:0x2B], "little")
    name = f"{serial >> 16:04X}-{serial & 0xFFFF:04X}" if serial else ""
    return Tags("vfat", name, _fat_label(shape, read))


def _fat_shape(head: bytes, *, fat32: bool) -> _Fat | None:
    sector, per_cluster, reserved, tables, entries = struct.unpack_from("<HBHBH", head, 0x0B)
    size, size32 = int.from_bytes(head[0x16:0x18], "little"), int.from_bytes(head[0x24:0x28], "little")
    if sector not in (512, 1024, 2048, 4096) or not per_cluster or not reserved or not tables:
        return None
    root = (reserved + tables * (size or size32)) * sector
    root_size = entries * _ENTRY
    return _Fat(
        cluster=per_cluster * sector,
        table=reserved * sector,
        root=root,
        root_size=root_size,
        data=root + -(-root_size // sector) * sector,
        root_cluster=int.from_bytes(head[0x2C:0x30], "little") if fat32 else 0,
    )


def _fat_label(shape: _Fat, read: Reader) -> str:
    for data in _fat_root(shape, read):
        for at in range(0, len(data) - _ENTRY + 1, _ENTRY):
            entry = data[at : at + _ENTRY]
            if not entry[0]:
                return ""
            if entry[0] != 0xE5 and entry[11] & 0x18 == 0x08 and entry[11] & 0x3F != 0x0F:
                name = b"\xe5" + entry[1:11] if entry[0] == 0x05 else entry[:11]
                label = _text(name)
                return "" if label == _NO_NAME else label
    return ""


def _fat_root(shape: _Fat, read: Reader) -> Iterator[bytes]:
    """Go through the root directory: in a FAT32 it is a chain of clusters, of which the table names the next."""
    if not shape.root_cluster:
        yield read(shape.root, min(shape.root_size, _MOST_DIRECTORY))
        return
    cluster = shape.root_cluster
    for _ in range(max(1, _MOST_DIRECTORY // shape.cluster)):
        if not 2 <= cluster < 0x0FFFFFF7:
            return
        yield read(shape.data + (cluster - 2) * shape.cluster, shape.cluster)
        cluster = int.from_bytes(read(shape.table + cluster * 4, 4), "little") & 0x0FFFFFFF
