"""Single bits of an image turned over, and what the code that would resume it makes of that.

Booting a machine for each would take hours, so most are tried here: the same code that boot kernel and C run opens and
restores the image, into a file that stands for the machine's memory. What it takes for good must have restored the
very same memory; then the bit did not matter.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kjump.errors import KjumpError, LabError, TargetError
from kjump.formats.superblock import SUPERBLOCK_SIZE, State
from kjump.image.destination import InPlace
from kjump.image.restore import open_image, restore
from kjump.lab.campaign import provocations
from kjump.ranges import Range, RangeSet
from kjump.target.device import Place, Target


class DiskImage(Target):
    """A target disk of a machine that is off, seen from the host as a file."""

    def __init__(self, path: Path) -> None:
        """Open it for reading; TargetError when that is impossible."""
        self.path = str(path)
        self.extents = ()
        self.place = Place(self.path)
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise TargetError(f"{path} cannot be opened: {error.strerror}") from None
        self.capacity = os.fstat(self.fd).st_size


@dataclass(frozen=True)
class Flip:
    """A bit to turn over: it belongs to `part` of the image."""

    part: str
    offset: int
    bit: int


def choose(disk: Path, count: int, generator: random.Random) -> list[Flip]:
    """Return `count` bits: an eighth in the superblock, a quarter in the seek table, an eighth in the headers, the rest
    spread over the whole image."""
    superblock = provocations.read_superblock(disk)
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
    return [Flip(part, *bit) for part, (where, number) in parts.items() for bit in _spread(where, number, generator)]


def _spread(where: Range, count: int, generator: random.Random) -> Iterator[tuple[int, int]]:
    """Go through `count` bits, one at random in each of as many equal parts of `where`."""
    for index in range(count):
        first, last = where.start + where.size * index // count, where.start + where.size * (index + 1) // count
        yield generator.randrange(first, max(last, first + 1)), generator.randrange(8)


class Judge:
    """Tries images as boot kernel and C would; `memory` bytes stand for the machine's RAM."""

    def __init__(self, disk: Path, memory: int) -> None:
        """Restore the good image on `disk` once, to know what must come of it."""
        self._memory = memory
        self._good = self._restored(disk)

    def verdict(self, disk: Path) -> str:
        """Return why the image on `disk` is refused, or "no difference".

        LabError when it is taken although it gives another memory.
        """
        try:
            found = self._restored(disk)
        except KjumpError as error:
            return str(error)
        if found != self._good:
            raise LabError("the image was taken for good and gave a memory that is not A's")
        return "no difference"

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
