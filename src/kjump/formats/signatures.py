"""What a block device already carries, told by the magic numbers that file systems and others leave.

Offsets and magics are those of each format's own documentation. Enough to refuse to overwrite something by
mistake; not a full probe.
"""

from __future__ import annotations

LENGTH = 0x11000
"""Bytes from the start of a device that hold all magics looked for."""

_MAGICS: tuple[tuple[str, int, bytes], ...] = (
    ("an ext2, ext3 or ext4 file system", 0x438, b"\x53\xef"),
    ("an XFS file system", 0, b"XFSB"),
    ("a Btrfs file system", 0x10040, b"_BHRfS_M"),
    ("an F2FS file system", 0x400, b"\x10\x20\xf5\xf2"),
    ("an NTFS file system", 3, b"NTFS    "),
    ("an exFAT file system", 3, b"EXFAT   "),
    ("a FAT file system", 0x36, b"FAT"),
    ("a FAT file system", 0x52, b"FAT32"),
    ("a SquashFS file system", 0, b"hsqs"),
    ("an EROFS file system", 0x400, b"\xe2\xe1\xf5\xe0"),
    ("an ISO 9660 file system", 0x8001, b"CD001"),
    ("swap space", 0xFF6, b"SWAPSPACE2"),
    ("a hibernation image of the kernel (swsusp)", 0xFF6, b"S1SUSPEND"),
    ("a LUKS volume", 0, b"LUKS\xba\xbe"),
    ("an LVM physical volume", 0x218, b"LVM2 001"),
    ("a Linux RAID member", 0, b"\xfc\x4e\x2b\xa9"),
    ("a Linux RAID member", 0x1000, b"\xfc\x4e\x2b\xa9"),
    ("a bcache device", 0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    ("a GPT partition table", 0x200, b"EFI PART"),
    ("an MBR partition table or boot sector", 0x1FE, b"\x55\xaa"),
)


def found(head: bytes) -> str | None:
    """Return in words what the first `LENGTH` bytes of a device (fewer, if it is smaller) say it carries, or None."""
    for name, offset, magic in _MAGICS:
        if head[offset : offset + len(magic)] == magic:
            return name
    return None
