"""Trials of images with one inverted bit.

Booting a machine for each bit would take hours, so most bits are tried on this host: the code that a boot kernel and a
restoring kernel run opens and restores the image into a file that stands for the machine's memory. If the code accepts
the image, the restored memory must be the same as without the inverted bit.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kjump.errors import KjumpError, LabError
from kjump.formats.superblock import SUPERBLOCK_SIZE, State
from kjump.image.destination import InPlace
from kjump.image.restore import open_image, restore
from kjump.lab.machine.disks import DiskImage, read_superblock
from kjump.ranges import Range, RangeSet

NO_DIFFERENCE = "no difference"
"""The verdict on an image that is accepted and restores the same memory."""


@dataclass(frozen=True)
class BitFlip:
    """A bit to invert, in the part `part` of the image."""

    part: str
    offset: int
    bit: int


@dataclass(frozen=True)
class BitTrial:
    """The result of an inverted bit in `part`, tried `by` "code" (the resume's code, on this host) or by a "boot".

    It is `ok` when the image was refused, or the bit made no difference.
    """

    by: str
    part: str
    byte: int
    bit: int
    seen: str
    ok: bool


def choose(disk: Path, count: int, generator: random.Random) -> list[BitFlip]:
    """Return `count` bits: 1/8 in the superblock, 1/4 in the seek table, 1/8 in the headers, the rest anywhere."""
    superblock = read_superblock(disk)
    image = superblock.image_offset
    with DiskImage(disk) as target:
        opened = open_image(target, states=(State.COMPLETE,))
    headers = next(
        f.compressed_offset + f.compressed_size
        for f in opened.seek_table
        if f.stream_offset + f.size >= superblock.header_length
    )
    parts = {
        "superblock": (Range(0, SUPERBLOCK_SIZE), count // 8),
        "headers": (Range.of_size(image, headers), count // 8),
        "seek table": (Range.of_size(image + superblock.seek_table_offset, superblock.seek_table_length), count // 4),
    }
    rest = count - sum(number for _, number in parts.values())
    parts["pages"] = (Range(image + headers, image + superblock.seek_table_offset), rest)
    return [BitFlip(part, *bit) for part, (where, number) in parts.items() for bit in _spread(where, number, generator)]


def _spread(where: Range, count: int, generator: random.Random) -> Iterator[tuple[int, int]]:
    """Yield `count` bits, one at random in each of `count` equal parts of `where`."""
    for index in range(count):
        first, last = where.start + where.size * index // count, where.start + where.size * (index + 1) // count
        yield generator.randrange(first, max(last, first + 1)), generator.randrange(8)


class RestoreTrial:
    """Tries images as a boot kernel and a restoring kernel would; `memory` bytes stand for the machine's RAM."""

    def __init__(self, disk: Path, memory: int) -> None:
        """Restore the undamaged image on `disk` once, for comparison."""
        self._memory = memory
        self._good = self._restored(disk)

    def verdict(self, disk: Path) -> str:
        """Return why the image on `disk` is refused, or NO_DIFFERENCE.

        LabError when it is accepted although it restores other memory contents.
        """
        try:
            found = self._restored(disk)
        except KjumpError as error:
            return str(error)
        if found != self._good:
            raise LabError("the image was taken for good and gave other memory than was saved")
        return NO_DIFFERENCE

    def _restored(self, disk: Path) -> str:
        fd = os.memfd_create("kjump-memory")
        try:
            os.truncate(fd, self._memory)
            with DiskImage(disk) as target:
                opened = open_image(target, states=(State.COMPLETE,))
                with InPlace(opened.contents, RangeSet(), 0, f"/proc/self/fd/{fd}") as landing:
                    restore(target, opened, landing, threads=os.cpu_count() or 1)
            with os.fdopen(os.dup(fd), "rb") as memory:
                return hashlib.file_digest(memory, "sha256").hexdigest()
        finally:
            os.close(fd)
