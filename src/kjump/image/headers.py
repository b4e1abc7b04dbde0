"""The image: an ELF vmcore of A inside a seekable zstd stream. docs/image-format.md draws it.

The headers come from page selection alone, so they are written first. Pages that are left out inside a
PT_LOAD are zeros in the stream, large gaps end a PT_LOAD. Two notes named KJUMP come after VMCOREINFO: the
facts (JSON) and the page list of the shadow, by which the restorer puts displaced pages back.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice

from kjump.errors import FormatError
from kjump.formats import elf, notes
from kjump.formats.record import Record
from kjump.image.facts import ImageFacts
from kjump.kexec.kimage import Shadow
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

NOTE_NAME = "KJUMP"
NOTE_FACTS = 1
NOTE_PAGE_LIST = 2


FRAME_SIZE = 1 << 20
"""Decompressed bytes in a frame of the stream."""

_SMALL_GAP_PAGES = 16
_MOST_LOADS = 16384


@dataclass(frozen=True)
class ImageHeaders:
    """An image's ELF headers: `head` (bytes 0 up to the first page) and where each PT_LOAD's pages stand.

    `loads` are ranges of A's page frames; `offsets` their byte offsets in the stream; `length` the stream's.
    """

    head: bytes
    loads: tuple[Range, ...]
    offsets: tuple[int, ...]

    @property
    def length(self) -> int:
        """Bytes of the whole stream, decompressed."""
        if not self.loads:
            return len(self.head)
        return self.offsets[-1] + self.loads[-1].size * PAGE_SIZE


def frames_to_keep(in_use: RangeSet, shadow: Shadow) -> RangeSet:
    """Return A's page frames that belong in an image: those of its RAM that are `in_use`, less what is B's.

    The shadow's sources are kernel pages of A that hold B's image as A sees them; their contents now are the
    window's, and are kept under the window's own addresses. Pages loaded in place never were A's.
    """
    return in_use - (shadow.sources | shadow.in_place)


def merge_small_gaps(frames: RangeSet) -> list[Range]:
    """Return ranges that cover `frames`, joined across gaps so small that a PT_LOAD of their own costs more."""
    gap = _SMALL_GAP_PAGES
    while True:
        merged = [*islice(_joined_across(frames, gap), _MOST_LOADS + 1)]
        if len(merged) <= _MOST_LOADS:
            return merged
        gap *= 2


def _joined_across(frames: RangeSet, gap: int) -> Iterator[Range]:
    """Yield ranges that cover `frames`, joined where fewer than `gap` frames are between."""
    begun = until = 0
    for start, end in frames.pairs():
        if begun == until:
            begun, until = start, end
        elif start - until < gap:
            until = end
        else:
            yield Range(begun, until)
            begun, until = start, end
    if begun != until:
        yield Range(begun, until)


def build_headers(keep: RangeSet, vmcoreinfo_note: bytes, facts: ImageFacts, shadow: Shadow) -> ImageHeaders:
    """Return the headers of an image that holds the frames `keep`."""
    loads = merge_small_gaps(keep)
    note_bytes = (
        vmcoreinfo_note
        + notes.Note(NOTE_NAME, NOTE_FACTS, json.dumps(facts.to_json(), separators=(",", ":")).encode()).encode()
        + notes.Note(NOTE_NAME, NOTE_PAGE_LIST, shadow.pack()).encode()
    )
    core_loads = [elf.CoreLoad(paddr=r.start * PAGE_SIZE, vaddr=0, size=r.size * PAGE_SIZE) for r in loads]
    head, offsets = elf.core_headers(core_loads, note_bytes)
    return ImageHeaders(head, tuple(loads), tuple(offsets))


@dataclass(frozen=True)
class ImageContents:
    """What the headers of an image say: its loads, the facts and the shadow of the time it was saved."""

    headers: ImageHeaders
    facts: ImageFacts
    shadow: Shadow

    @cached_property
    def spans_to_restore(self) -> list[Span]:
        """Where the pages that a restorer writes stand in the stream, and where they belong until A has swapped."""
        return self.spans_when_swapped(self.shadow)

    def spans_when_swapped(self, shadow: Shadow) -> list[Span]:
        """The same when A is to swap just the pairs of `shadow`, a part of its own: all else is at home."""
        return spans(self.headers, self.frames_to_restore, shadow)

    @cached_property
    def frames_to_restore(self) -> RangeSet:
        """The frames that a restorer writes.

        The zeros that stand in for left-out pages are written too, but never over a shadow page (it receives a
        page of the window, or nothing) nor where the window's own contents were loaded in place (it never was A's).
        """
        return RangeSet(self.headers.loads) - self.shadow.sources - self.shadow.in_place


def parse_headers(head: bytes) -> ImageContents:
    """Read the first bytes of an image's stream; FormatError when they are not those of a kjump image."""
    core = elf.parse(head)
    loads, offsets = [], []
    for header in core.program_headers:
        if header.type == elf.PT_LOAD:
            loads.append(Range.of_size(header.paddr // PAGE_SIZE, header.filesz // PAGE_SIZE))
            offsets.append(header.offset)
    found = {n.type: n.desc for n in _all_notes(head, core.program_headers) if n.name == NOTE_NAME}
    if NOTE_FACTS not in found or NOTE_PAGE_LIST not in found:
        raise FormatError("this core has no KJUMP notes: it is not an image that can be resumed")
    facts = ImageFacts.from_json(Record.parse(found[NOTE_FACTS], "the image's facts"))
    return ImageContents(ImageHeaders(head, tuple(loads), tuple(offsets)), facts, Shadow.unpack(found[NOTE_PAGE_LIST]))


def _all_notes(head: bytes, program_headers: Iterable[elf.ProgramHeader]) -> Iterable[notes.Note]:
    for header in program_headers:
        if header.type == elf.PT_NOTE:
            if header.offset + header.filesz > len(head):
                raise FormatError("the image's notes are cut off")
            yield from notes.iterate(head[header.offset : header.offset + header.filesz])


Span = tuple[int, int, int]
"""(stream, address, length): `length` bytes of the stream from `stream` on, and the physical `address` that holds them.

A load may scatter A's window over thousands of them, and objects with names for that take ten times as long to make.
"""


class Spans:
    """Spans without an object for each: a save of a machine whose memory is in small pieces has millions of them."""

    def __init__(self, items: Iterable[Span]) -> None:
        """Take `items`, one at a time."""
        self._numbers = array("Q")
        for item in items:
            self._numbers.extend(item)

    def __iter__(self) -> Iterator[Span]:
        """Go through them in their order."""
        numbers = iter(self._numbers)
        return zip(numbers, numbers, numbers, strict=True)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._numbers) // 3

    @property
    def packed(self) -> memoryview:
        """They as the native core takes them; not a copy."""
        return memoryview(self._numbers).cast("B")


def spans(headers: ImageHeaders, frames: RangeSet, shadow: Shadow) -> list[Span]:
    """Return what `iterate_spans` yields."""
    return [*iterate_spans(headers, frames, shadow)]


def iterate_spans(headers: ImageHeaders, frames: RangeSet, shadow: Shadow) -> Iterator[Span]:
    """Go through where the pages of `frames` stand in the stream and in memory while a kernel sits in the window.

    `frames` is what has contents of its own: what `frames_to_keep` gave when saving; for restoring, see
    `ImageContents.frames_to_restore`.
    """
    for load, offset in zip(headers.loads, headers.offsets, strict=True):
        for item in frames.within(load):
            for frame, holder, count in shadow.place(item):
                stream = offset + (frame - load.start) * PAGE_SIZE
                yield stream, holder * PAGE_SIZE, count * PAGE_SIZE


def homes(items: Iterable[Span]) -> RangeSet:
    """Return the physical ranges (bytes) to which `items` belong."""
    return RangeSet.joined(sorted((address, length) for _, address, length in items))


def pack_spans(items: Sequence[Span]) -> bytes:
    """Return spans as the native core takes them: native u64 triples (stream, offset, length)."""
    return struct.pack(f"={3 * len(items)}Q", *chain.from_iterable(items))
