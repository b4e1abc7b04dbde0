"""One dump from beginning to end: source, selection, writer, output."""

from __future__ import annotations

import contextlib
import errno
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from kjump import _core, _dump
from kjump.dump import bitmaps, writers
from kjump.dump.classes import LEVEL_MOST, LEVEL_ZERO
from kjump.dump.outputs import DeviceOutput, FileOutput, FlattenedOutput, Output, StreamOutput
from kjump.dump.pipeline import Progress, chunks, drop_zeros
from kjump.dump.selection import Selection, frames_with_structs, select_level
from kjump.dump.source import Source
from kjump.dump.writers import Task, Written
from kjump.errors import FormatError, TargetError, UsageError
from kjump.formats.kdump import Method
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range

_SAMPLES = 32
_SAMPLE_PAGES = 64


class Format(Enum):
    """The file format of a dump."""

    ELF = "elf"
    KDUMP = "kdump"
    IMAGE = "image"


@dataclass(frozen=True)
class Request:
    """The options of a dump. Destination `-` is standard output; several destinations split a kdump file.

    `level` None keeps all pages of the source. `compression` None is level 1 of zstd or zlib.
    """

    destinations: tuple[str, ...]
    level: int | None = None
    format: Format = Format.IMAGE
    flattened: bool = False
    method: Method = Method.ZSTD
    compression: int | None = None
    threads: int = 1
    force: bool = False
    progress: Progress | None = None

    def check(self) -> None:
        """Raise UsageError for options that contradict each other."""
        if self.level is not None and not 0 <= self.level <= LEVEL_MOST:
            raise UsageError(f"dump levels are 0 to {LEVEL_MOST}, not {self.level}")
        if "-" in self.destinations and self.format is Format.KDUMP and not self.flattened:
            raise UsageError("kdump-compressed files are not written in order: use --format flattened for a pipe")
        if len(self.destinations) > 1 and (self.format is not Format.KDUMP or self.flattened):
            raise UsageError("only kdump-compressed files can be split: say --format kdump")
        if self.format is Format.ELF and self.method is not Method.NONE and self.compression is not None:
            raise UsageError("an ELF core is not compressed: use --format image, or kdump")
        if self.format is Format.IMAGE and self.method is not Method.ZSTD:
            raise UsageError("images are compressed with zstd: use --format kdump for other methods")


@dataclass
class Report:
    """The result of a dump: pages the source should have, pages it lacks, pages kept; bytes and seconds."""

    source: str
    source_pages: int
    missing_pages: int
    kept_pages: int
    zero_pages: int
    left_out: dict[str, int]
    size: int
    seconds: float
    select_seconds: float
    consistent: bool
    complete: bool
    estimated: bool = False
    files: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON."""
        return {**vars(self), "page_size": PAGE_SIZE}


def choose(source: Source, level: int | None) -> Selection:
    """Return what dump `level` keeps of `source`; None keeps all pages.

    When the kernel's layout cannot be found, levels 0 and 1, which leave out no page class, keep all pages with a
    warning; FormatError for the other levels.
    """
    if level is None:
        return Selection(bytearray(source.present))
    try:
        return select_level(source.layout, source.present, level)
    except FormatError as error:
        if level & ~LEVEL_ZERO:
            raise FormatError(f"{error}; --level 0 and `kjump dump convert` keep all pages") from None
        return Selection(bytearray(source.present), warnings=(f"all pages are kept: {error}",))


def dump(source: Source, request: Request, *, dry_run: bool = False) -> Report:
    """Write the dump of `source` that `request` asks for; with `dry_run` only return an estimate.

    KjumpError on failure; there is no file under the final name then.
    """
    request.check()
    begun = time.monotonic()
    selection = choose(source, request.level)
    selected = time.monotonic()
    level = request.level or 0
    task = Task(
        source=source,
        keep=selection.keep,
        memory=_memory(source, selection),
        level=level,
        method=request.method,
        compression=1 if request.compression is None else request.compression,
        threads=request.threads,
        skip_zeros=bool(level & LEVEL_ZERO),
        progress=request.progress,
    )
    zeros = 0
    if request.format is Format.ELF and task.skip_zeros:
        zeros = drop_zeros(source, task.keep, task.threads)
    written = estimate(task, request) if dry_run else _write(task, request)
    left_out = {c.name.lower(): n for c, n in selection.left_out.items() if n}
    if selection.no_struct:
        left_out["no_struct"] = selection.no_struct
    return Report(
        source=source.kind,
        source_pages=bitmaps.count(source.present) + source.missing,
        missing_pages=source.missing,
        kept_pages=written.pages - written.zero_pages,
        zero_pages=zeros + written.zero_pages,
        left_out=left_out,
        size=written.size,
        seconds=round(time.monotonic() - begun, 3),
        select_seconds=round(selected - begun, 4),
        consistent=not source.live,
        complete=source.complete,
        estimated=dry_run,
        files=[] if dry_run else [d for d in request.destinations if d != "-"],
        warnings=[*source.warnings, *selection.warnings],
    )


def _memory(source: Source, selection: Selection) -> bytearray:
    """Return the bitmap of the machine's memory, without frames for which the kernel has no struct page."""
    memory = writers.memory_of(source)
    if selection.no_struct:
        memory = bitmaps.intersection(memory, frames_with_structs(source.layout))
    return memory


def _write(task: Task, request: Request) -> Written:
    if len(request.destinations) > 1:
        return _write_split(task, request)
    work: Callable[[Task, Output], Written] = {
        Format.ELF: writers.write_elf,
        Format.IMAGE: writers.write_image,
        Format.KDUMP: writers.write_kdump,
    }[request.format]
    with _output(request.destinations[0], request, task) as out:
        written = work(task, out)
    return replace(written, size=out.written)


def _write_split(task: Task, request: Request) -> Written:
    """Write the parts of a kdump file one after another; they get their final names when all are complete."""
    parts = writers.split_parts(task, len(request.destinations))
    results = []
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(_output(path, request, task)) for path in request.destinations]
        for part, out in zip(parts, outputs, strict=True):
            results.append(writers.write_kdump(task, out, part))
    return Written(*(sum(values) for values in zip(*((r.pages, r.zero_pages, r.size) for r in results), strict=True)))


@contextlib.contextmanager
def _output(destination: str, request: Request, task: Task) -> Iterator[Output]:
    """Open a destination; at the end of the context finish it, or abandon it after an exception."""
    out: Output
    if destination == "-":
        out = StreamOutput(sys.stdout.fileno())
    elif (path := Path(destination)).is_fifo() or path.is_char_device():
        out = StreamOutput.open(path)
    elif path.is_block_device():
        out = _device(path, request)
    else:
        out = FileOutput(path, force=request.force)
    if request.flattened:
        out = FlattenedOutput(out)
    try:
        yield out
        out.finish()
    except OSError as error:
        out.abandon()
        raise TargetError(_why(error, destination, out.written, task, request)) from None
    except BaseException:
        out.abandon()
        raise


def _device(path: Path, request: Request) -> DeviceOutput:
    if not request.force:
        raise TargetError(f"{path} is a device: give --force to overwrite what it holds")
    if request.format is Format.IMAGE:
        raise UsageError(f"an image on the device {path} would have no end that could be found: use --format kdump")
    return DeviceOutput(path)


def _why(error: OSError, destination: str, written: int, task: Task, request: Request) -> str:
    name = "standard output" if destination == "-" else destination
    if error.errno == errno.ENOSPC:
        needed = estimate(task, request).size
        return f"no space left for {name}: {written} bytes were written, about {needed} are needed in all"
    return f"cannot write {name}: {error.strerror}"


def estimate(task: Task, request: Request) -> Written:
    """Return the expected result of writing `task`: exact for ELF, estimated from samples for compressed formats."""
    count = bitmaps.count(task.keep)
    if request.format is Format.ELF:
        return Written(count, 0, writers.plan_elf(task).size)
    plan = writers.plan_elf(task) if request.format is Format.IMAGE else None
    head = plan.head_size if plan else writers.kdump_header(task).descriptors + 24 * count
    sampled = size = zeros = 0
    for part in _samples(task.keep):
        data = task.source.read_pages(task.keep, part.start, part.end)
        sampled += len(data) // PAGE_SIZE
        if plan:
            size += len(_core.compress_bytes(data, task.compression))
        else:
            table, packed = _dump.compress_pages(data, task.method, task.compression, task.skip_zeros)
            zeros += _dump.place(table, 0, 0)
            size += len(packed)
    share = count / max(1, sampled)
    return Written(count, int(zeros * share), head + int(size * share))


def _samples(keep: bytearray) -> Iterator[Range]:
    """Yield ranges of frames, evenly spread over those that are kept, with a few thousand pages in all."""
    step = max(_SAMPLE_PAGES, bitmaps.count(keep) // _SAMPLES)
    for chunk in chunks(keep, 0, len(keep) * 8, step):
        first = next(chunks(keep, chunk.start, chunk.end, _SAMPLE_PAGES))
        yield Range(first.start, first.end)


def request_of(request: Request, **changes: Any) -> Request:
    """Return `request` with some fields changed."""
    return replace(request, **changes)


__all__ = ["Format", "FormatError", "Report", "Request", "choose", "dump", "estimate", "request_of"]
