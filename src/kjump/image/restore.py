"""The restorer: an image checked against target and machine, and A's pages from it to where they are to land."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kjump import _core
from kjump.errors import FormatError, ImageError
from kjump.formats import seekable
from kjump.formats.e820 import E820Entry, difference
from kjump.formats.superblock import MemoryUse, State, Superblock
from kjump.host import procfs
from kjump.image import bounds
from kjump.image import headers as image_headers
from kjump.image.destination import Landing
from kjump.image.threads import threads_to_restore
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet
from kjump.target.device import Target, check_digest, why_not_resumable

if TYPE_CHECKING:
    from kjump.image.save import Progress


@dataclass(frozen=True)
class OpenImage:
    """An image on a target, its headers read and checked against the superblock."""

    superblock: Superblock
    contents: image_headers.ImageContents
    seek_table: seekable.SeekTable


@dataclass(frozen=True)
class Restored:
    """What a restoration came to: bytes, seconds, and this kernel's memory."""

    size: int
    seconds: float
    memory: MemoryUse


def open_image(target: Target, *, states: tuple[State, ...]) -> OpenImage:
    """Read superblock, seek table and headers of the image on `target`.

    ImageError, in one sentence, when its state is not one of `states` or anything is damaged.
    """
    try:
        superblock = target.read_superblock()
    except FormatError as error:
        raise ImageError(f"{target.path}: {error}") from None
    if superblock.state not in states:
        raise ImageError(f"{target.path}: {why_not_resumable(superblock) or 'the image is in another state'}")
    try:
        if bool(superblock.map_length) != bool(target.place.extents):
            raise FormatError("a file target and a whole device have been mistaken for each other")
        bounds.check_lengths(superblock, target.capacity, len(target.extent_map(superblock.cookie)))
        table = bounds.read_seek_table(target, superblock)
        frames = seekable.SeekTable.decode(table)
        head = _read_head(target, superblock, frames)
        check_digest(target, superblock, head, table)
        contents = image_headers.parse_headers(head)
        bounds.check_stream(contents.headers, superblock)
        bounds.check_places(contents, contents.facts.system.memory_map)
        whole = State.COMPLETE if superblock.state is State.ATTEMPTED else superblock.state
        if contents.facts.kind.state is not whole:
            raise FormatError(
                f"its superblock calls it {superblock.state.name.lower()}, its facts a {contents.facts.kind}"
            )
        return OpenImage(superblock, contents, frames)
    except (FormatError, _core.Damaged) as error:
        raise ImageError(f"the image on {target.path} is damaged: {error}") from None


def _read_head(target: Target, superblock: Superblock, frames: seekable.SeekTable) -> bytes:
    """Return the ELF headers: the first `header_length` bytes of the stream."""
    head = bytearray()
    for frame in frames:
        if len(head) >= superblock.header_length:
            break
        data = target.read_patiently(superblock.image_offset + frame.compressed_offset, frame.compressed_size)
        head += _core.decompress_frame(data, frame.size, frame.checksum)
    if len(head) < superblock.header_length:
        raise FormatError("its stream is shorter than its headers")
    return bytes(memoryview(head)[: superblock.header_length])


def check_machine(
    contents: image_headers.ImageContents, memory_map: tuple[E820Entry, ...], cpu_model: str, cpu_flags: frozenset[str]
) -> None:
    """Refuse (ImageError) an image that was saved with another memory map, or on a CPU that could do more.

    And one that says of anything that it belongs where `memory_map` has no RAM.
    """
    saved = contents.facts.system
    try:
        found = difference(saved.memory_map, memory_map)
        if found:
            raise ImageError(f"the machine's memory map is not the one the image was saved with: {found}")
        bounds.check_places(contents, memory_map)
    except FormatError as error:
        raise ImageError(f"the image does not fit this machine: {error}") from None
    if saved.cpu_model != cpu_model:
        raise ImageError(f"the image was saved on a CPU {saved.cpu_model!r}, this one is {cpu_model!r}")
    missing = saved.cpu_flags - cpu_flags
    if missing:
        raise ImageError(f"this CPU lacks features that the saved system uses: {', '.join(sorted(missing))}")


def restore(
    target: Target,
    opened: OpenImage,
    landing: Landing,
    *,
    threads: int,
    progress: Progress | None = None,
) -> Restored:
    """Write A's pages where `landing` says, with so many `threads` or as memory is for; return sizes and times.

    ImageError when a frame is damaged, or `landing` has no place for a page; A's memory is then incomplete, and nobody
    may jump to it.
    """
    begun = time.monotonic()
    spans = landing.spans
    try:
        with target.disk.lent(writable=False) as fd:
            _core.restore(
                image_fd=fd,
                image_offset=opened.superblock.image_offset,
                entries=opened.seek_table.entries,
                spans=image_headers.pack_spans(spans),
                dest_fd=landing.fd,
                threads=threads_to_restore(threads),
                direct=True,
                progress=progress,
                extents=target.packed_extents(),
            )
    except _core.Damaged as error:
        raise ImageError(f"the image on {target.path} is damaged: {error}") from None
    except OSError as error:
        raise ImageError(f"reading the image on {target.path} failed: {error.strerror}") from None
    seconds = round(time.monotonic() - begun, 3)
    return Restored(sum(length for _, _, length in spans), seconds, procfs.memory_use())


def own_memory(window: Range, low: Range) -> RangeSet:
    """Return what a kernel in the window owns, in whole pages: the window, and the low memory lent to it."""
    return RangeSet([window, low]).aligned_inside(PAGE_SIZE)
