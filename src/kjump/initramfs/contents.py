"""The contents of the initramfs, as seen from inside it.

The same files serve all roles. The kernel frees an initrd that it has unpacked, so a boot kernel makes the initrd for
the restoring kernel (C) from its own files. That archive is uncompressed, which saves C the time to decompress it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from kjump.errors import FormatError, HostError
from kjump.formats import cpio

KERNEL = Path("/boot/vmlinuz")
FILE_LIST = Path("/kjump/files")
JOB_NAME = "kjump/job.json"
TOOLS = Path("/kjump/tools")
"""The folder of programs for hooks; it is first on their PATH."""


def tool_entries(paths: Iterable[Path]) -> list[cpio.Entry]:
    """Return the entries for the static programs at `paths`; one called busybox becomes /bin/sh too."""
    entries = []
    for path in paths:
        inside = TOOLS / path.name
        entries.append(cpio.regular(str(inside), path.read_bytes(), 0o755))
        if path.name == "busybox":
            entries.append(cpio.symlink("bin/sh", str(inside)))
    return entries


_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_CPIO_MAGIC = b"07070"
_OTHER_MAGICS = (b"\x1f\x8b", b"\x1f\x9e", b"BZh", b"\x5d\x00", b"\xfd7zXZ\x00", b"\x89LZO", b"\x02!L\x18")
"""First bytes of gzip (two), bzip2, LZMA, XZ, LZO and LZ4 data; source: lib/decompress.c of Linux 6.12."""
_USUAL_RATIO = 3


def own_initrd() -> bytes:
    """Return an uncompressed initrd of this initramfs' files without the kernel; HostError outside an initramfs."""
    try:
        names = FILE_LIST.read_text().splitlines()
    except OSError:
        raise HostError("this is not a kjump initramfs: give a kernel and an initramfs") from None
    return cpio.write([_entry(name) for name in names])


def _entry(name: str) -> cpio.Entry:
    path = Path("/", name)
    info = path.lstat()
    if stat.S_ISLNK(info.st_mode):
        data = os.fsencode(os.readlink(path))  # noqa: PTH115
    elif stat.S_ISREG(info.st_mode):
        data = path.read_bytes()
    else:
        data = b""
    device = (os.major(info.st_rdev), os.minor(info.st_rdev))
    return cpio.Entry(name=name, mode=info.st_mode, data=data, rdev=device)


def with_job(initrd: bytes, job: bytes) -> bytes:
    """Return `initrd` with one more archive appended, which holds the file `job`; the kernel unpacks all archives."""
    return cpio.join([initrd, cpio.write([cpio.regular(JOB_NAME, job)])])


def without_kernel(initrd: bytes) -> bytes:
    """Return `initrd` without the bzImage that the boot role starts as C, which a second kernel does not need.

    An `initrd` that is compressed, or has a compressed archive behind the first, is returned unchanged.
    """
    try:
        return cpio.without(initrd, str(KERNEL).lstrip("/"))
    except FormatError:
        return initrd


def is_initramfs(head: bytes) -> bool:
    """Tell by a file's first bytes whether it can be an initramfs: a cpio archive, compressed or not."""
    return head.startswith((_CPIO_MAGIC, _ZSTD_MAGIC, *_OTHER_MAGICS))


def unpacked_size(initrd: bytes) -> int:
    """Return the size in bytes of `initrd` unpacked: from the header of a zstd frame, else an estimate.

    Source: RFC 8878, section 3.1.1.1 (frame header). Archives behind the first are counted with their stored size.
    """
    if not initrd.startswith(_ZSTD_MAGIC):
        return len(initrd) if initrd.startswith(_CPIO_MAGIC) else len(initrd) * _USUAL_RATIO
    descriptor = initrd[4]
    single = descriptor >> 5 & 1
    length = (single, 2, 4, 8)[descriptor >> 6]
    if not length:
        return len(initrd) * _USUAL_RATIO
    at = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    return int.from_bytes(initrd[at : at + length], "little") + (256 if length == 2 else 0)
