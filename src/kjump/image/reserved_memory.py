"""Memory for A's pages beside a boot kernel, which may be taken before anything else of the image has been looked at.

The kernel zeroes it, and a CPU that has nothing else to do can see to that while Python imports the rest of the
restorer and the image is checked. So this module imports little.
"""

from __future__ import annotations

from kjump.errors import HostError, KjumpError
from kjump.formats.superblock import State
from kjump.host import procfs
from kjump.host.locked_memory import HUGE_PAGE, HugeFile
from kjump.target.device import open_at

_SPARE = 96 << 20
"""Memory that stays free beside A's pages: workers, lists, what kexec_load copies."""
_MORE = 12
"""Huge pages for what is known only when the image has been read: zeros of A, and pages that cannot be used."""


def take(count: int) -> HugeFile:
    """Take `count` huge pages; HostError when there is not memory enough, or not in huge pages."""
    needed, available = count * HUGE_PAGE + _SPARE, procfs.meminfo()["MemAvailable"]
    if available < needed:
        raise HostError(f"{available >> 20} MiB are available, {needed >> 20} MiB needed")
    return HugeFile("kjump-aside", count)


def take_ahead(path: str, offset: int) -> HugeFile | None:
    """Take memory for the image whose superblock is at byte `offset` of the device `path`, and let it be zeroed.

    None when there is no image to resume or no room for it: whoever looks closer will say why.
    """
    try:
        with open_at(path, offset, writable=False) as target:
            superblock = target.read_superblock()
        saved = superblock.details.saved
        if superblock.state is State.COMPLETE and saved is not None:
            return take(saved.kept_bytes // HUGE_PAGE + _MORE)
    except KjumpError:
        pass
    return None
