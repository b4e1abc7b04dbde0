"""What the initramfs holds, as seen from inside it.

The same files serve all three roles. A boot kernel has no file to hand to C any more (the kernel frees the
initrd it unpacked), so it packs its own files again, uncompressed: that costs C nothing to unpack.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from kjump.errors import HostError
from kjump.formats import cpio

KERNEL = Path("/boot/vmlinuz")
FILE_LIST = Path("/kjump/files")
JOB_NAME = "kjump/job.json"


def own_initrd() -> bytes:
    """Return an uncompressed initrd with this initramfs' own files, less the kernel; HostError outside one."""
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


def with_job(initrd: bytes, job: dict[str, Any]) -> bytes:
    """Return `initrd` with `job` as one more archive behind it; the kernel unpacks one after the other."""
    return cpio.join([initrd, cpio.write([cpio.regular(JOB_NAME, json.dumps(job).encode())])])
