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
from kjump.image.facts import ADDRESS_END, ImageFacts
from kjump.kexec.kimage import RUN, Shadow
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

NOTE_NAME = "KJUMP"
NOTE_FACTS = 1
NOTE_PAGE_LIST = 2


FRAME_SIZE = 1 << 20
"""Decompressed bytes in a frame of the stream."""
HEADER_LIMIT = 32 << 20
"""Bytes of an image's headers: program headers (1 MiB), facts, and a page list with a run for each page below 4 GiB."""
FACTS_LIMIT = 2 << 20
"""Bytes of the facts in an image's headers."""

_SMALL_GAP_PAGES = 16
_MOST_LOADS = 16384
_WIDEST_GAP_PAGES = 1 << 40
_MOST_PROGRAM_HEADERS = 2 * _MOST_LOADS
_MOST_NOTES = 16
_FRAME_END = ADDRESS_END // PAGE_SIZE


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


def merge_small_gaps(frames: RangeSet, ram: RangeSet | None = None) -> list[Range]:
    """Return ranges that cover `frames`, joined across gaps so small that a PT_LOAD of their own costs more.

    None reaches from one range of `ram`, in which all `frames` lie, into another: what is between is not RAM, and the
    restorer must not write there, not even zeros.
    """
    gap = _SMALL_GAP_PAGES
    while True:
        merged = [*islice(_joined_across(frames, gap, ram), _MOST_LOADS + 1)]
        if len(merged) <= _MOST_LOADS:
            return merged
        if gap > _WIDEST_GAP_PAGES:
            raise FormatError(f"the system's RAM lies in more than {_MOST_LOADS} ranges")
        gap *= 2


def _joined_across(frames: RangeSet, gap: int, ram: RangeSet | None) -> Iterator[Range]:
    """Yield ranges that cover `frames`, joined where fewer than `gap` frames are between, all of them in `ram`."""
    begun = until = 0
    border = _FRAME_END
    for start, end in frames.pairs():
        if begun != until and start - until < gap and end <= border:
            until = end
            continue
        if begun != until:
            yield Range(begun, until)
        begun, until = start, end
        if ram is not None:
            around = ram.containing(start)
            border = around.end if around else end
    if begun != until:
        yield Range(begun, until)


def build_headers(
    keep: RangeSet, vmcoreinfo_note: bytes, facts: ImageFacts, shadow: Shadow, ram: RangeSet | None = None
) -> ImageHeaders:
    """Return the headers of an image that holds the frames `keep`, all of them in `ram` (frames) if that is given.

    FormatError when they are larger than a reader would take.
    """
    loads = merge_small_gaps(keep, ram)
    facts_json = json.dumps(facts.to_json(), separators=(",", ":")).encode()
    note_bytes = (
        vmcoreinfo_note
        + notes.Note(NOTE_NAME, NOTE_FACTS, facts_json).encode()
        + notes.Note(NOTE_NAME, NOTE_PAGE_LIST, shadow.pack()).encode()
    )
    core_loads = [elf.CoreLoad(paddr=r.start * PAGE_SIZE, vaddr=0, size=r.size * PAGE_SIZE) for r in loads]
    head, offsets = elf.core_headers(core_loads, note_bytes)
    if len(facts_json) > FACTS_LIMIT or len(head) > HEADER_LIMIT:
        raise FormatError(
            f"the image's headers take {len(head)} bytes, its facts {len(facts_json)}: "
            f"at most {HEADER_LIMIT} and {FACTS_LIMIT} are allowed"
        )
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
    """Read the first bytes of an image's stream; FormatError when they are not those of a kjump image.

    What they say of places is believed only as far as it can be checked here: loads are whole pages, ascending and
    disjoint, in memory and in the stream, as is the page list. See `image.bounds` for what depends on the machine.
    """
    core = elf.parse(head, most=_MOST_PROGRAM_HEADERS)
    if core.header.bits != 64 or core.header.type != elf.ET_CORE or core.header.machine != elf.EM_X86_64:
        raise FormatError("this is not the core of an x86_64 machine")
    found = _kjump_notes(head, core)
    facts = ImageFacts.from_json(Record.parse(found[NOTE_FACTS], "the image's facts"))
    loads, offsets = _loads(core, len(head))
    _check_page_list(found[NOTE_PAGE_LIST])
    return ImageContents(ImageHeaders(head, loads, offsets), facts, Shadow.unpack(found[NOTE_PAGE_LIST]))


def _kjump_notes(head: bytes, core: elf.ElfFile) -> dict[int, bytes]:
    """Return the contents of the notes named KJUMP, by type; FormatError when one lacks or there are too many."""
    segments = core.notes
    if len(segments) != 1:
        raise FormatError(f"this core has {len(segments)} segments of notes: an image has one")
    where = segments[0].data
    if where.end > len(head):
        raise FormatError("the image's notes are cut off")
    found: dict[int, bytes] = {}
    for count, note in enumerate(notes.iterate(memoryview(head)[where.start : where.end])):
        if count >= _MOST_NOTES or (note.name == NOTE_NAME and note.type in found):
            raise FormatError("this core has more notes than an image has")
        if note.name == NOTE_NAME:
            found[note.type] = note.desc
    if NOTE_FACTS not in found or NOTE_PAGE_LIST not in found:
        raise FormatError("this core has no KJUMP notes: it is not an image that can be resumed")
    if len(found[NOTE_FACTS]) > FACTS_LIMIT:
        raise FormatError(f"the image's facts have {len(found[NOTE_FACTS])} bytes; at most {FACTS_LIMIT} are allowed")
    return found


def _loads(core: elf.ElfFile, head_size: int) -> tuple[tuple[Range, ...], tuple[int, ...]]:
    """Return the page frames of each PT_LOAD and where its pages stand in the stream, behind the headers."""
    loads: list[Range] = []
    offsets: list[int] = []
    last_frame, at = 0, None
    for header in core.loads:
        pages = header.physical
        if (pages.start | pages.end | header.offset) % PAGE_SIZE or not pages.size or header.memsz != header.filesz:
            raise FormatError(f"its pages from {pages.start:#x} on are not whole pages, all of them in the image")
        if pages.end > ADDRESS_END:
            raise FormatError(f"its pages {pages} lie beyond the end of physical memory")
        frames = Range(pages.start // PAGE_SIZE, pages.end // PAGE_SIZE)
        if frames.start < last_frame:
            raise FormatError(f"its pages {pages} overlap those before, or do not ascend")
        if (at is None and not core.header.table.end <= header.offset <= head_size) or at not in (None, header.offset):
            raise FormatError(f"its pages {pages} do not stand in the stream behind those before")
        loads.append(frames)
        offsets.append(header.offset)
        last_frame, at = frames.end, header.offset + pages.size
    return tuple(loads), tuple(offsets)


def _check_page_list(data: bytes) -> None:
    """Refuse (FormatError) a page list whose runs do not ascend, overlap, are empty or lie beyond all memory.

    It is looked at as it stands: a run takes ten times its bytes once it has been read.
    """
    if len(data) % RUN.size:
        raise FormatError(f"a page list has a multiple of {RUN.size} bytes, not {len(data)}")
    last = 0
    for destination, source, pages in RUN.iter_unpack(data):
        if not pages or max(destination, source) + pages > _FRAME_END:
            raise FormatError(
                f"its page list has {pages} pages from {destination:#x} and {source:#x} on, which cannot be"
            )
        if destination < last:
            raise FormatError(f"its page list does not ascend at page {destination:#x}, or has it twice")
        last = destination + pages


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
