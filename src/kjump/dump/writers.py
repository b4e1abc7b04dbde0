"""The writers: what is kept of a source becomes an ELF core, a kjump image or a kdump-compressed file.

Each takes a Task and an Output and returns a Written. An ELF core has a PT_LOAD for each run of pages that are kept,
joined across small gaps (zeros there), and one without contents where memory was left out. An image is such a
core in a zstd stream in the seekable format.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from kjump import _core, _dump
from kjump.dump import facts, pages
from kjump.dump.elfsource import ElfSource
from kjump.dump.kdumpsource import KdumpSource
from kjump.dump.outputs import Output
from kjump.dump.pipeline import CHUNK, Chunk, Progress, Stopped, chunks, in_order
from kjump.dump.sources import Source, frames_bitmap
from kjump.formats import elf, kdump, notes, seekable
from kjump.formats.kdump import Method
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet, align_up

NOTE_NAME = "KJUMP"
NOTE_DUMP = 16
"""Type of the KJUMP note in an image that is a dump: JSON with the level and the time."""

FRAME_PAGES = 256
"""Pages in a frame of an image: 1 MiB."""

_SMALL_GAP = 16
_MOST_LOADS = 16384


@dataclass(frozen=True)
class Task:
    """What to write: the frames `keep` of `source`, whose machine has the frames `memory` (a bitmap too).

    `level` is the dump level they were chosen by. `compression` is the level of zstd or zlib. `method` and `skip_zeros`
    are for kdump files; the latter has pages of zeros share one place.
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
        """Tell how far it is; Stopped when the listener says so."""
        if self.progress is not None and self.progress(done, total, written) is False:
            raise Stopped("stopped before the dump was done")


@dataclass(frozen=True)
class Written:
    """What came of it: pages kept, how many of them are zeros without a place of their own, bytes written."""

    pages: int
    zero_pages: int
    size: int


def memory_of(source: Source) -> bytearray:
    """Return the bitmap of frames that are memory: what the source has, and what it says was left out."""
    if isinstance(source, KdumpSource):
        return bytearray(source.memory)
    if isinstance(source, ElfSource):
        both = pages.runs(source.present, len(source.present) * 8) | pages.to_frames(source.holes)
        return frames_bitmap(both)
    return source.present


# --- ELF ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ElfPlan:
    """An ELF core to be: `head` up to the first page, and `stored`, the frames that stand in the file in order."""

    head: bytes
    stored: bytearray
    count: int

    @property
    def size(self) -> int:
        """Bytes of the whole core."""
        return len(self.head) + self.count * PAGE_SIZE


def plan_elf(task: Task, more_notes: bytes = b"") -> ElfPlan:
    """Lay out an ELF core that holds `task.keep`; `more_notes` (encoded) follow the source's."""
    source = task.source
    memory = pages.runs(task.memory, len(task.memory) * 8)
    gap = _SMALL_GAP
    while len(loads := list(_loads(memory, task.keep, gap))) > _MOST_LOADS and gap < 1 << 40:
        gap *= 4
    machine = elf.EM_X86_64 if source.word == 8 else elf.EM_386
    virtual = source.virtual if isinstance(source, ElfSource) else (lambda _: 0)
    core_loads = [_core_load(load, stored, virtual(load.start * PAGE_SIZE)) for load, stored in loads]
    head, _ = elf.core_headers(core_loads, own_notes(source) + more_notes, machine=machine)
    kept = RangeSet(load for load, stored in loads if stored)
    return ElfPlan(head, pages.bitmap(kept).ljust(len(task.keep), b"\0"), kept.size)


def _core_load(load: Range, stored: bool, virtual: int) -> elf.CoreLoad:
    size = load.size * PAGE_SIZE
    return elf.CoreLoad(load.start * PAGE_SIZE, virtual, size if stored else 0, 0 if stored else size)


def own_notes(source: Source) -> bytes:
    """Return the source's notes without what another dump added to them."""
    return notes.encode(note for note in notes.iterate(source.notes) if note.name != NOTE_NAME)


def _loads(memory: RangeSet, keep: bytearray, gap: int) -> Iterator[tuple[Range, bool]]:
    """Yield the frames of memory in order, cut into those to be stored (True) and those to be left out."""
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
    """Write an ELF core. Pages of zeros, when they are to be left out, must be gone from `keep` already."""
    plan = plan_elf(task)
    out.write(0, plan.head)
    at = len(plan.head)
    done = 0

    def read(chunk: Chunk) -> bytes:
        return task.source.read_pages(task.keep, chunk.start, chunk.end, plan.stored)

    for chunk, data in in_order(read, chunks(plan.stored, 0, len(plan.stored) * 8), task.threads):
        out.write(at, data)
        at += len(data)
        done += chunk.pages
        task.report(done, plan.count, out.written)
    return Written(pages.count(task.keep), 0, out.written)


# --- image --------------------------------------------------------------------------------------------------


def write_image(task: Task, out: Output) -> Written:
    """Write a kjump image: an ELF core in a zstd stream of independent frames, with a seek table."""
    about = {"kind": "dump", "level": task.level, "written": int(time.time()), "source": task.source.kind}
    note = notes.Note(NOTE_NAME, NOTE_DUMP, json.dumps(about).encode()).encode()
    plan = plan_elf(task, note)
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
    return Written(pages.count(task.keep), 0, out.written)


def _frames(plan: ElfPlan) -> Iterator[bytes | Chunk]:
    size = FRAME_PAGES * PAGE_SIZE
    yield from (plan.head[at : at + size] for at in range(0, len(plan.head), size))
    yield from chunks(plan.stored, 0, len(plan.stored) * 8, FRAME_PAGES)


# --- kdump-compressed ---------------------------------------------------------------------------------------


def kdump_head(task: Task, part: Range | None = None) -> tuple[kdump.KdumpHeader, bytes]:
    """Return the header of a kdump file, and all its bytes up to the descriptors."""
    source = task.source
    known = facts.learn(source)
    memory = task.memory
    highest = last_frame(memory)
    note_bytes = own_notes(source)
    info = notes.find(note_bytes, notes.VMCOREINFO)
    text = info.desc if info is not None else b""
    header = kdump.KdumpHeader(
        max_mapnr=highest,
        bitmap_blocks=kdump.bitmap_blocks(highest),
        word=source.word,
        utsname=known.utsname,
        timestamp=known.crash_time or 0,
        status=int(task.method),
        cpus=known.cpus,
        phys_base=known.phys_base,
        dump_level=task.level,
        split=part,
    )
    info_at = header.encoded_size
    notes_at = align_up(info_at + len(text), 8)
    blocks = -(-(notes_at + len(note_bytes) - kdump.BLOCK) // kdump.BLOCK)
    header = replace(
        header,
        sub_header_blocks=blocks,
        vmcoreinfo=Range.of_size(info_at, len(text)),
        notes=Range.of_size(notes_at, len(note_bytes)),
    )
    head = (header.encode() + text).ljust(notes_at, b"\0") + note_bytes
    size = header.bitmap_size
    bitmaps = bytes(memory[:size]).ljust(size, b"\0") + bytes(task.keep[:size]).ljust(size, b"\0")
    return header, head.ljust(header.first_bitmap.start, b"\0") + bitmaps


def write_kdump(task: Task, out: Output, part: Range | None = None) -> Written:
    """Write a kdump-compressed file, or the `part` (page frames) of a split one."""
    header, head = kdump_head(task, part)
    where = part or Range(0, len(task.keep) * 8)
    found = pages.count_between(task.keep, where.start, where.end)
    out.write(0, head)
    desc_at = header.descriptors
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
    """Cut the frames of memory into `count` parts with about as many kept pages each."""
    end = last_frame(task.memory)
    each = max(1, -(-pages.count(task.keep) // count))
    borders = [0, *(chunk.end for chunk in chunks(task.keep, 0, end, each))][:count]
    borders += [end] * (count + 1 - len(borders))
    return [Range(a, b) for a, b in pairwise(borders)]


def last_frame(memory: bytes | bytearray) -> int:
    """Return the frame behind the last of a bitmap."""
    return int.from_bytes(memory, "little").bit_length()
