"""The writers of dump files: ELF cores, kjump images and kdump-compressed files.

Each takes a Task and an Output and returns a Written. An ELF core has a PT_LOAD for each run of kept pages (runs with
small gaps between them are joined, the gaps filled with zeros), and a PT_LOAD without contents where memory was left
out. An image is such a core in a zstd stream in the seekable format.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from kjump import _core, _dump
from kjump.dump import bitmaps
from kjump.dump.elfsource import ElfSource
from kjump.dump.identity import identify
from kjump.dump.kdumpsource import KdumpSource, SplitSource
from kjump.dump.outputs import Output
from kjump.dump.pipeline import CHUNK, Chunk, Progress, Stopped, chunks, in_order
from kjump.dump.source import Source, without_nonsense
from kjump.formats import elf, kdump, notes, seekable
from kjump.formats.kdump import Method
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet, align_up

FRAME_PAGES = 256
"""Pages in a zstd frame of an image (1 MiB)."""

_SMALL_GAP = 16
_MOST_LOADS = 16384


@dataclass(frozen=True)
class Task:
    """What to write: the page frames `keep` (a bitmap) of `source`; `memory` is the bitmap of all the machine's frames.

    `level` is the dump level by which `keep` was chosen. `compression` is the level of zstd or zlib. `method` and
    `skip_zeros` are for kdump files; with the latter all pages of zeros share one stored page.
    """

    source: Source
    keep: bytearray
    memory: bytearray
    level: int = 0
    method: Method = Method.ZSTD
    compression: int = 1
    threads: int = 1
    skip_zeros: bool = False
    progress: Progress | None = None

    def report(self, done: int, total: int, written: int) -> None:
        """Report progress in pages and bytes; Stopped when the progress callback asks to stop."""
        if self.progress is not None and self.progress(done, total, written) is False:
            raise Stopped("stopped before the dump was done")


@dataclass(frozen=True)
class Written:
    """The result of writing: pages kept, those of zeros without a stored page of their own, bytes written."""

    pages: int
    zero_pages: int
    size: int


def memory_of(source: Source) -> bytearray:
    """Return the bitmap of frames that are memory: those in the source, and those that it says were left out."""
    if isinstance(source, KdumpSource | SplitSource):
        # The source's bitmap of memory may be damaged; the frames that are present are memory in any case.
        return bitmaps.union(source.memory, source.present)
    if isinstance(source, ElfSource):
        known = bitmaps.runs(source.present, len(source.present) * 8)
        return bitmaps.bitmap(known | without_nonsense(bitmaps.to_frames(source.holes), known))
    return source.present


# --- ELF ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ElfPlan:
    """The layout of an ELF core: its contents before the first page, and `stored`, the frames in the file in order.

    Large notes are read only when they are written; `before` and `after` are the contents around them.
    """

    before: bytes
    large: tuple[notes.LargeNote, ...]
    after: bytes
    stored: bytearray
    count: int

    @property
    def size(self) -> int:
        """Bytes of the whole core."""
        return self.head_size + self.count * PAGE_SIZE

    @property
    def head_size(self) -> int:
        """The offset of the first page in bytes."""
        return len(self.before) + sum(note.encoded_size for note in self.large) + len(self.after)

    def head(self) -> Iterator[bytes]:
        """Yield the contents before the first page."""
        yield self.before
        for note in self.large:
            yield from note.encode()
        yield self.after


def plan_elf(task: Task, more_notes: bytes = b"") -> ElfPlan:
    """Lay out an ELF core that holds `task.keep`; `more_notes` (encoded) follow the source's."""
    source = task.source
    memory = bitmaps.runs(task.memory, len(task.memory) * 8)
    # Pages that were left out on purpose may be written as zeros, but not pages that an incomplete source lacks.
    gap = _SMALL_GAP if source.complete else 1
    while len(loads := list(_loads(memory, task.keep, gap))) > _MOST_LOADS and gap < 1 << 40:
        gap *= 4
    machine = elf.EM_X86_64 if source.word == 8 else elf.EM_386
    virtual = source.virtual if isinstance(source, ElfSource) else (lambda _: 0)
    core_loads = [_core_load(load, stored, virtual(load.start * PAGE_SIZE)) for load, stored in loads]
    large = own_large_notes(source)
    more = sum(note.encoded_size for note in large)
    before, after, _ = elf.core_headers_around(core_loads, own_notes(source) + more_notes, more, machine=machine)
    kept = RangeSet(load for load, stored in loads if stored)
    return ElfPlan(before, large, after, bitmaps.bitmap(kept).ljust(len(task.keep), b"\0"), kept.size)


def _core_load(load: Range, stored: bool, virtual: int) -> elf.CoreLoad:
    size = load.size * PAGE_SIZE
    return elf.CoreLoad(load.start * PAGE_SIZE, virtual, size if stored else 0, 0 if stored else size)


def _about(task: Task) -> bytes:
    """Return the KJUMP note of a dump (encoded)."""
    about = {"kind": "dump", "level": task.level, "written": int(time.time()), "source": task.source.kind}
    about |= {} if task.source.complete else {"complete": False}
    return notes.Note(notes.KJUMP, notes.NT_KJUMP_DUMP, json.dumps(about).encode()).encode()


def own_notes(source: Source) -> bytes:
    """Return the source's notes without the KJUMP note of an earlier dump."""
    return notes.encode(note for note in notes.iterate(source.notes) if note.name != notes.KJUMP)


def own_large_notes(source: Source) -> tuple[notes.LargeNote, ...]:
    """Return the same as `own_notes` for the source's large notes."""
    return tuple(note for note in source.large_notes if note.name != notes.KJUMP)


def _loads(memory: RangeSet, keep: bytearray, gap: int) -> Iterator[tuple[Range, bool]]:
    """Yield the ranges of memory frames in order, each with True if it is stored, False if it is left out."""
    bits = len(keep) * 8
    for item in memory:
        at = item.start
        for first, last in _core.bitmap_runs(keep, min(at, bits), min(item.end, bits), True, gap):
            if first > at:
                yield Range(at, first), False
            yield Range(first, last), True
            at = last
        if at < item.end:
            yield Range(at, item.end), False


def write_elf(task: Task, out: Output) -> Written:
    """Write an ELF core; if pages of zeros shall be left out, the caller has removed them from `task.keep`."""
    plan = plan_elf(task, b"" if task.source.complete else _about(task))
    at = _write_in_order(out, plan.head())
    done = 0

    def read(chunk: Chunk) -> bytes:
        return task.source.read_pages(task.keep, chunk.start, chunk.end, plan.stored)

    for chunk, data in in_order(read, chunks(plan.stored, 0, len(plan.stored) * 8), task.threads):
        out.write(at, data)
        at += len(data)
        done += chunk.pages
        task.report(done, plan.count, out.written)
    return Written(bitmaps.count(task.keep), 0, out.written)


def _write_in_order(out: Output, parts: Iterable[bytes | memoryview]) -> int:
    """Write `parts` one after another from offset 0; return their size in bytes."""
    at = 0
    for part in parts:
        out.write(at, part)
        at += len(part)
    return at


# --- image --------------------------------------------------------------------------------------------------


def write_image(task: Task, out: Output) -> Written:
    """Write a kjump image: an ELF core in a zstd stream of independent frames, with a seek table."""
    plan = plan_elf(task, _about(task))
    entries: list[bytes] = []
    at = done = 0

    def compress(item: bytes | Chunk) -> tuple[int, bytes]:
        if isinstance(item, Chunk):
            item = task.source.read_pages(task.keep, item.start, item.end, plan.stored)
        return len(item), _core.compress_bytes(item, task.compression)

    for item, (size, frame) in in_order(compress, _frames(plan), task.threads):
        out.write(at, frame)
        at += len(frame)
        # A frame ends with its checksum: the low half of the XXH64 of its contents.
        entries.append(len(frame).to_bytes(4, "little") + size.to_bytes(4, "little") + frame[-4:])
        done += item.pages if isinstance(item, Chunk) else 0
        task.report(done, plan.count, out.written)
    out.write(at, seekable.SeekTable(b"".join(entries)).encode())
    return Written(bitmaps.count(task.keep), 0, out.written)


def _frames(plan: ElfPlan) -> Iterator[bytes | Chunk]:
    size = FRAME_PAGES * PAGE_SIZE
    yield from (part[at : at + size] for part in plan.head() for at in range(0, len(part), size))
    yield from chunks(plan.stored, 0, len(plan.stored) * 8, FRAME_PAGES)


# --- kdump-compressed ---------------------------------------------------------------------------------------


def kdump_header(task: Task, part: Range | None = None) -> kdump.KdumpHeader:
    """Return the header of a kdump file; VMCOREINFO, notes and bitmaps follow it (see `_kdump_head`)."""
    source = task.source
    known = identify(source)
    highest = bitmaps.end_of(task.memory)
    header = kdump.KdumpHeader(
        max_mapnr=highest,
        bitmap_blocks=kdump.bitmap_blocks(highest),
        word=source.word,
        utsname=known.as_utsname(),
        timestamp=known.crash_time or 0,
        status=int(task.method) | (0 if source.complete else int(kdump.Status.INCOMPLETE)),
        cpus=known.cpus or 1,
        phys_base=known.phys_base or 0,
        dump_level=task.level,
        split=part,
    )
    info = Range.of_size(header.encoded_size, len(_vmcoreinfo(source)))
    size = len(own_notes(source)) + sum(note.encoded_size for note in own_large_notes(source))
    note_bytes = Range.of_size(align_up(info.end, 8), size)
    blocks = -(-(note_bytes.end - kdump.BLOCK) // kdump.BLOCK)
    return replace(header, sub_header_blocks=blocks, vmcoreinfo=info, notes=note_bytes)


def _vmcoreinfo(source: Source) -> bytes:
    note = notes.find(source.notes, notes.VMCOREINFO)
    return b"" if note is None else note.desc


def _kdump_head(task: Task, header: kdump.KdumpHeader) -> Iterator[bytes | memoryview]:
    """Yield the contents of a kdump file before its page descriptors."""
    yield (header.encode() + _vmcoreinfo(task.source)).ljust(header.notes.start, b"\0") + own_notes(task.source)
    for note in own_large_notes(task.source):
        yield from note.encode()
    yield bytes(header.first_bitmap.start - header.notes.end)
    for bits in (task.memory, task.keep):
        part = memoryview(bits)[: header.bitmap_size]
        yield part
        yield bytes(header.bitmap_size - len(part))


def write_kdump(task: Task, out: Output, part: Range | None = None) -> Written:
    """Write a kdump-compressed file, or the `part` (page frames) of a split one."""
    header = kdump_header(task, part)
    where = part or Range(0, len(task.keep) * 8)
    found = bitmaps.count_between(task.keep, where.start, where.end)
    desc_at = _write_in_order(out, _kdump_head(task, header))
    zero_at = at = desc_at + found * kdump.DESCRIPTOR.size
    if task.skip_zeros:
        out.write(zero_at, bytes(PAGE_SIZE))
        at += PAGE_SIZE
    zeros = done = 0

    def compress(chunk: Chunk) -> tuple[bytearray, bytes]:
        data = task.source.read_pages(task.keep, chunk.start, chunk.end)
        return _dump.compress_pages(data, task.method, task.compression, task.skip_zeros)

    for chunk, (table, data) in in_order(compress, chunks(task.keep, where.start, where.end, CHUNK), task.threads):
        zeros += _dump.place(table, at, zero_at)
        out.write(desc_at, table)
        out.write(at, data)
        desc_at += len(table)
        at += len(data)
        done += chunk.pages
        task.report(done, found, out.written)
    return Written(found, zeros, out.written)


def split_parts(task: Task, count: int) -> list[Range]:
    """Divide the frames of memory into `count` ranges with about the same number of kept pages each."""
    end = bitmaps.end_of(task.memory)
    each = max(1, -(-bitmaps.count(task.keep) // count))
    borders = [0, *(chunk.end for chunk in chunks(task.keep, 0, end, each))][:count]
    borders += [end] * (count + 1 - len(borders))
    return [Range(a, b) for a, b in pairwise(borders)]
