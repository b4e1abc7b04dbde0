"""Physical memory outside the running kernel's RAM, through /dev/mem: how a second kernel reads the first one's."""

from __future__ import annotations

import mmap
import os

from kjump.errors import HostError
from kjump.host import root

_MEMORY = "/dev/mem"


def map_physical(address: int, length: int, *, writable: bool) -> mmap.mmap:
    """Map `length` bytes from the page-aligned physical `address` on; HostError when the kernel refuses.

    Kernels with IO_STRICT_DEVMEM refuse addresses in a busy resource, unless booted with iomem=relaxed.
    """
    access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    try:
        fd = os.open(root.at(_MEMORY), (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            return mmap.mmap(fd, length, prot=access, offset=address)
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError(
            f"physical memory at {address:#x} cannot be reached through {_MEMORY}: {error.strerror}; "
            "a kernel with IO_STRICT_DEVMEM needs iomem=relaxed on its command line, and no kernel may be locked down"
        ) from None


def read_physical(address: int, length: int) -> bytes:
    """Return `length` bytes of physical memory from the page-aligned `address` on; HostError as `map_physical`."""
    with map_physical(address, length, writable=False) as view:
        return view[:]
