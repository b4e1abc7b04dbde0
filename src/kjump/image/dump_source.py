"""A parked system as a source of dumps: what `kjump dump` does with a vmcore, done in B with A itself."""

from __future__ import annotations

import os

from kjump.dump import bitmaps
from kjump.dump.source import Source, frames_bitmap
from kjump.image.save import Parked


class ParkedSource(Source):
    """A, parked, as A sees its own memory; it stands still, so what is read is consistent.

    Left out are the pages that hold B: to A they are the kernel's, kept for the image it has loaded.
    """

    def __init__(self, parked: Parked) -> None:
        """Look at `parked`, which is closed with this."""
        self._parked = parked
        self.kind = "parked system"
        self.notes = parked.vmcoreinfo_note
        shadow = parked.shadow
        self.present = frames_bitmap(bitmaps.to_frames(parked.memory.ranges) - shadow.sources - shadow.in_place)

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes of A from physical `address`; FormatError when some are missing."""
        return self._parked.memory.read(address, length)

    def close(self) -> None:
        """Close /proc/vmcore."""
        os.close(self._parked.raw.fd)
