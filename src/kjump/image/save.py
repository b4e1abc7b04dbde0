"""The saver: in B, A's memory from /proc/vmcore to the target."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from kjump import _core
from kjump.dump.bitmaps import bitmap, runs, to_frames
from kjump.dump.kernel import KernelLayout
from kjump.dump.selection import pages_in_use, select_level
from kjump.errors import FormatError, HostError, KjumpError, TargetError
from kjump.formats import elf, notes, seekable, vmcoreinfo
from kjump.formats.superblock import Details, Saved, State, Superblock
from kjump.host import procfs, root
from kjump.host.kernel_memory import FreePages
from kjump.image import compression as levels
from kjump.image import headers as image_headers
from kjump.image.bounds import ram_in
from kjump.image.facts import ImageFacts
from kjump.image.threads import threads_to_save
from kjump.kexec.kimage import ParkedMemory, Shadow, walk
from kjump.memory import PAGE_SIZE, FileMemory, FilePiece
from kjump.ranges import RangeSet
from kjump.target.device import Target, digest

VMCORE = "/proc/vmcore"

_MAP_GAP = 1 << 20
"""/proc/vmcore may be mapped across what is not wanted: a larger map costs less than many small ones."""

Progress = Callable[[int, int, int], bool]
"""Called with (bytes done, bytes in all, bytes written); returns False to cancel."""


class SaveCancelled(KjumpError):
    """Somebody pressed the key that cancels."""


@dataclass(frozen=True)
class Parked:
    """A, parked: its memory as the machine holds it (`raw`), as A sees it (`memory`), and its shadow."""

    raw: FileMemory
    memory: ParkedMemory
    shadow: Shadow
    vmcoreinfo_note: bytes
    layout: KernelLayout


def open_parked(head: int, path: str = VMCORE) -> Parked:
    """Open A's memory through /proc/vmcore; `head` is the head of A's indirection list (from the mailbox)."""
    try:
        fd = os.open(root.at(path), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise FormatError(f"cannot open {path}: {error.strerror}; this kernel was given no ELF core headers") from None
    header = elf.parse_header(os.pread(fd, 64, 0))
    program_headers = elf.parse_program_headers(header, os.pread(fd, header.table.size, header.table.start))
    pieces = [FilePiece(p.paddr, p.filesz, p.offset) for p in program_headers if p.type == elf.PT_LOAD]
    raw = FileMemory(fd, pieces, mapped=True)
    note = _vmcoreinfo_note(fd, program_headers)
    shadow = Shadow(walk(raw.read, head))
    memory = ParkedMemory(raw, shadow)
    return Parked(raw, memory, shadow, note.encode(), KernelLayout(memory, vmcoreinfo.parse(note.desc)))


def _vmcoreinfo_note(fd: int, program_headers: tuple[elf.ProgramHeader, ...]) -> notes.Note:
    for header in program_headers:
        if header.type == elf.PT_NOTE:
            for note in notes.iterate(os.pread(fd, header.filesz, header.offset)):
                if note.name == "VMCOREINFO":
                    return note
    raise FormatError("/proc/vmcore carries no VMCOREINFO note")


def save(
    parked: Parked,
    ram: RangeSet,
    facts: ImageFacts,
    target: Target,
    *,
    level: int,
    threads: int,
    free_pages: FreePages = FreePages.ANY,
    progress: Progress | None = None,
    finish: Callable[[Superblock], None] | None = None,
) -> Saved:
    """Write A to `target`, which must be armed; the superblock says complete only when all is on the medium.

    `ram` is A's RAM (physical ranges); `facts` goes into the image's note. `free_pages` is what A trusts them to
    hold: any, then they are left out; zero, then they are left out but stand in the stream as zeros, which the restorer
    writes; poison, then they are kept. With a `dump_level` in `facts` the image is a dump, which cannot be restored.
    `finish` writes the superblock that says complete (default: the target does), and may refuse to. Fewer than
    `threads` are taken where memory is short. TargetError when the image does not fit or a write fails, SaveCancelled
    when `progress` returned False: the superblock then says so too.
    """
    begun = time.monotonic()
    superblock = target.read_superblock()
    if facts.dump_level is None:
        _require_compared(ram, facts)
        selection = _select(parked, to_frames(ram), facts, free_pages)
    else:
        selection = _select_for_reading(parked, to_frames(ram), facts, facts.dump_level)
    selected = time.monotonic()
    target.write_superblock(superblock.evolve(state=State.WRITING))
    try:
        offset = superblock.image_offset
        if level == levels.AUTO:
            level = levels.measure(parked.raw.fd, selection.spans, target, offset, threads=threads)
        output = _Output(target, offset, level, threads_to_save(threads, level), progress)
        length, seek_table = _write(parked.raw, selection, output)
        target.disk.flush()
    except _core.Cancelled:
        target.write_superblock(superblock.evolve(state=State.INVALID, details=Details("the save was cancelled")))
        raise SaveCancelled("the save was cancelled by key") from None
    except OSError as error:
        reason = f"writing the image to {target.path} failed: {error.strerror}"
        _note_failure(target, superblock, reason)
        raise TargetError(reason) from None
    seconds = (selected - begun, time.monotonic() - selected)
    result = Saved(selection.kept_bytes, length, *seconds, procfs.memory_use(), level)
    (finish or target.write_superblock)(
        superblock.evolve(
            state=facts.kind.state,
            image_length=length,
            stream_length=selection.headers.length,
            header_length=len(selection.headers.head),
            seek_table_offset=length - len(seek_table),
            seek_table_length=len(seek_table),
            digest=digest(selection.headers.head, seek_table, target.extent_map(superblock.cookie)),
            details=Details(saved=result),
        )
    )
    return result


def _require_compared(ram: RangeSet, facts: ImageFacts) -> None:
    """Raise HostError when some of `ram` is not in the firmware's map, by which whoever resumes knows what is there."""
    strange = ram.aligned_inside(PAGE_SIZE) - ram_in(facts.system.memory_map)
    if len(strange):
        raise HostError(
            f"this system has RAM at {next(iter(strange))} that is not in the firmware's memory map (was it plugged in "
            "later?): an image of it could not be checked before it is resumed"
        )


@dataclass(frozen=True)
class _Selection:
    """What goes into an image: how much is kept, the headers, and where in /proc/vmcore each span is."""

    kept_bytes: int
    headers: image_headers.ImageHeaders
    spans: image_headers.Spans


def _select(parked: Parked, frames: RangeSet, facts: ImageFacts, free_pages: FreePages) -> _Selection:
    in_use = frames if free_pages is FreePages.POISON else pages_in_use(parked.layout, frames)
    kept = image_headers.frames_to_keep(in_use, parked.shadow)
    described = kept | (frames - in_use) if free_pages is FreePages.ZERO else kept
    return _describe(parked, kept, described, facts, frames)


def _select_for_reading(parked: Parked, frames: RangeSet, facts: ImageFacts, level: int) -> _Selection:
    wanted = select_level(parked.layout, bitmap(frames), level)
    kept = image_headers.frames_to_keep(runs(wanted.keep, wanted.end), parked.shadow)
    return _describe(parked, kept, kept, facts, frames)


def _describe(
    parked: Parked, kept: RangeSet, described: RangeSet, facts: ImageFacts, ram: RangeSet | None = None
) -> _Selection:
    headers = image_headers.build_headers(described, parked.vmcoreinfo_note, facts, parked.shadow, ram)
    found = _vmcore_spans(parked.raw, image_headers.iterate_spans(headers, kept, parked.shadow))
    return _Selection(kept.size * PAGE_SIZE, headers, image_headers.Spans(found))


@dataclass(frozen=True)
class _Output:
    """Where the stream goes (from byte `offset` of the target on), and how."""

    target: Target
    offset: int
    level: int
    threads: int
    progress: Progress | None


def _write(raw: FileMemory, selection: _Selection, output: _Output) -> tuple[int, bytes]:
    """Write the stream behind the superblock; return its length in bytes and the seek table that ends it."""
    seek_tables: list[bytes] = []

    def trailer(entries: bytes) -> bytes:
        seek_tables.append(seekable.SeekTable(entries).encode())
        return seek_tables[-1]

    with output.target.disk.lent(writable=True) as fd:
        length, _ = _core.compress(
            source_fd=raw.fd,
            spans=selection.spans.packed,
            head=selection.headers.head,
            stream_length=selection.headers.length,
            frame_size=image_headers.FRAME_SIZE,
            level=output.level,
            threads=output.threads,
            out_fd=fd,
            out_offset=output.offset,
            direct=True,
            limit=output.target.capacity - output.offset,
            trailer=trailer,
            progress=output.progress,
            map_gap=_MAP_GAP,
            extents=output.target.packed_extents(),
        )
    return length, seek_tables[0]


def _note_failure(target: Target, superblock: Superblock, reason: str) -> None:
    # It is the medium that just failed; if this fails too the superblock says writing, which is refused as well.
    with contextlib.suppress(TargetError):
        target.write_superblock(superblock.evolve(state=State.INVALID, details=Details().because(reason)))


def _vmcore_spans(raw: FileMemory, spans: Iterable[image_headers.Span]) -> Iterator[image_headers.Span]:
    """Turn physical addresses into offsets of /proc/vmcore, splitting at the borders of its pieces."""
    piece = FilePiece(0, 0, 0)
    for stream, address, length in spans:
        if piece.address <= address and address + length <= piece.address + piece.length:
            yield stream, piece.offset + address - piece.address, length
            continue
        for part in raw.locate(address, length):
            yield stream + part.address - address, part.offset, part.length
        piece = raw.piece_at(address)
