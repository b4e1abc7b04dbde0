"""dump: write a kernel's memory to a file, or show the contents of a dump."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from kjump.cli.options import DUMP_LEVEL, Renamed, human, print_json
from kjump.cli.progress import progress
from kjump.errors import UsageError

if TYPE_CHECKING:
    from kjump.dump.create import Report, Request
    from kjump.dump.source import Source
    from kjump.dump.summary import Summary

_FORMATS = ("image", "kdump", "elf", "flattened", "flattened-elf")
_MOST_THREADS = 256
"""The largest number of threads that the native core accepts."""
_METHODS = ("zstd", "zlib", "lzo", "snappy", "none")


class _Dump(click.Group):
    """`kjump dump SRC DST` writes a dump, unless its first argument is a subcommand."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["write", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Dump, subcommand_metavar="SRC DST [OPTIONS] | COMMAND")
def dump_command() -> None:
    """Write a kernel's memory to a file, or look into one.

    Reads a vmcore, /proc/vmcore, /proc/kcore or another dump.

    `kjump dump SRC DST` writes; see `kjump dump write --help` for its options.
    """


class _Compress(click.ParamType[tuple[str, int | None]]):
    """METHOD or METHOD:LEVEL."""

    name = "method[:level]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int | None]:
        """Return the method and its level; level None is the method's default."""
        if isinstance(value, tuple):
            return value
        method, colon, level = str(value).partition(":")
        if method not in _METHODS or (colon and not level.lstrip("-").isdecimal()):
            self.fail(f"{value!r} is not METHOD[:LEVEL] with one of {', '.join(_METHODS)}", param, ctx)
        if colon and not _level_fits(method, int(level)):
            self.fail(f"{method} has no level {level}: zlib has 1 to 9, zstd -50 to 19, others have none", param, ctx)
        return method, int(level) if colon else None


def _level_fits(method: str, level: int) -> bool:
    return {"zlib": 1 <= level <= 9, "zstd": -50 <= level <= 19}.get(method, False)


def _writing(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of all commands that write dumps."""
    options = (
        click.argument("paths", nargs=-1, required=True, metavar="SRC... DST..."),
        click.option(
            "--format", "form", type=click.Choice(_FORMATS), default="image", show_default=True, help="Of DST."
        ),
        click.option("--compress", type=_Compress(), help="zstd, zlib, lzo, snappy or none; :LEVEL if you like."),
        click.option("--threads", type=click.IntRange(1, _MOST_THREADS), help="Threads that compress [all CPUs]."),
        click.option("--force", is_flag=True, help="Replace a file that exists."),
        click.option("--dry-run", is_flag=True, help="Say what would be written, and how large it would be."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@dump_command.command("write")
@click.option(
    "--dump-level",
    "--level",
    "level",
    cls=Renamed,
    type=DUMP_LEVEL,
    default=31,
    show_default=True,
    help="What to leave out, as a sum: 1 zeros, 2 page cache, 4 private page cache, 8 user pages, 16 free pages.",
)
@_writing
def write_command(level: int, **options: Any) -> None:
    """Write what is worth keeping of SRC to DST.

    SRC is a vmcore, /proc/vmcore, /proc/kcore or another dump; `-` is standard output, several DST split a kdump file.
    When SRC is a part of a split dump, the other parts that follow it are read with it, as one dump.
    """
    _dump(level, **options)


@dump_command.command("convert")
@click.option(
    "--dump-level", "--level", "level", cls=Renamed, type=DUMP_LEVEL, help="Leave out more, see `kjump dump write`."
)
@_writing
def convert_command(level: int | None, **options: Any) -> None:
    """Write all that the dump SRC has to DST in another format.

    When SRC is a part of a split dump, the other parts that follow it are read with it, as one dump.
    """
    _dump(level, **options)


def _dump(level: int | None, paths: tuple[str, ...], as_json: bool, dry_run: bool, **options: Any) -> None:
    from kjump.dump.create import dump, request_of

    sources, destinations = _sources_first(paths)
    request = _request(level, destinations, **options)
    with _open(sources) as opened, _progress(sources[0], wanted=not as_json and not dry_run) as report_progress:
        report = dump(opened, request_of(request, progress=report_progress), dry_run=dry_run)
    if as_json:
        _print(print_json, report.as_json(), request)
    else:
        _tell(report)


def _print(printer: Callable[[Any], None], value: Any, request: Request) -> None:
    if request.destinations == ("-",) and not sys.stdout.isatty():
        import json

        click.echo(json.dumps(value), err=True)  # standard output is the dump
    else:
        printer(value)


def _request(
    level: int | None,
    destinations: tuple[str, ...],
    form: str,
    compress: tuple[str, int | None] | None,
    threads: int | None,
    force: bool,
) -> Request:
    from kjump.dump.create import Format, Request
    from kjump.formats.kdump import Method

    kind = {"image": Format.IMAGE, "kdump": Format.KDUMP, "flattened": Format.KDUMP}.get(form, Format.ELF)
    method, compression = compress or ("zstd", None)
    return Request(
        destinations=destinations,
        level=level,
        format=kind,
        flattened=form.startswith("flattened"),
        method=Method[method.upper()],
        compression=compression,
        threads=threads or min(len(os.sched_getaffinity(0)), _MOST_THREADS),
        force=force,
    )


def _sources_first(paths: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Divide `paths` into sources (the first path, or the leading parts of a split dump) and destinations."""
    from kjump.dump.opening import is_split_part

    count = next((i for i, path in enumerate(paths) if not is_split_part(path)), len(paths))
    count = max(1, count)
    if count == len(paths):
        raise UsageError("say where to write the dump: SRC DST (`-` is standard output)")
    return paths[:count], paths[count:]


def _open(paths: tuple[str, ...]) -> Source:
    from kjump.dump.opening import open_sources

    return open_sources(paths)


@contextmanager
def _progress(source: str, *, wanted: bool) -> Iterator[Callable[[int, int, int], None] | None]:
    if not wanted:
        yield None
        return
    with progress(f"dumping {source}") as report:
        yield lambda done, total, written: report(done / max(1, total), f"{human(written)} written")


def _tell(report: Report) -> None:
    pages, kept = report.source_pages, report.kept_pages
    what = "would take about" if report.estimated else "take"
    click.echo(
        f"{report.source}: {kept} of {pages} pages ({human(kept * 4096)} of {human(pages * 4096)}) {what} "
        f"{human(report.size)}" + ("" if report.estimated else f", written in {report.seconds:.1f} s"),
        err=True,
    )
    _warn(report.complete, report.consistent, report.warnings)


def _warn(complete: bool, consistent: bool, more: Sequence[str]) -> None:
    from kjump.dump.dmesg import printable

    if not consistent:
        click.echo("kjump: the memory was dumped while the system ran, so it is not consistent", err=True)
    if not complete:
        click.echo("kjump: the source is incomplete; pages that lack in it cannot be read", err=True)
    for text in more:
        click.echo(f"kjump: {printable(text)}", err=True)


@dump_command.command("dmesg")
@click.argument("sources", nargs=-1, required=True, metavar="SRC...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def dmesg_command(sources: tuple[str, ...], as_json: bool) -> None:
    """Print the kernel's log out of a dump.

    Several SRC are the parts of a split one.
    """
    from kjump.dump.dmesg import records

    with _open(sources) as opened:
        lines = list(records(opened.layout))
    if as_json:
        print_json({"records": [{"ns": r.nanoseconds, "seq": r.sequence, "text": r.text} for r in lines]})
    else:
        click.echo("\n".join(map(str, lines)))


@dump_command.command("info")
@click.argument("sources", nargs=-1, required=True, metavar="SRC...")
@click.option("--zeros", is_flag=True, help="Count pages of zeros too; all of the dump is read for it.")
@click.option("--vmcoreinfo", "text", is_flag=True, help="Print the kernel's VMCOREINFO and nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info_command(sources: tuple[str, ...], zeros: bool, text: bool, as_json: bool) -> None:
    """Say what a dump is of, and what its pages are.

    Several SRC are the parts of a split one.
    """
    from kjump.dump.dmesg import printable
    from kjump.dump.summary import summarize

    with _open(sources) as opened:
        if text:
            click.echo("\n".join(map(printable, opened.info.text.rstrip().split("\n"))))
            return
        found = summarize(opened, zeros=zeros, threads=min(len(os.sched_getaffinity(0)), _MOST_THREADS))
        if as_json:
            print_json(found.as_json())
        else:
            _show(found)


def _show(found: Summary) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 100)
    for name, value in found.lines().items():
        console.print(f"{name:14}{value}", highlight=False, markup=False)
    table = Table(box=None, pad_edge=False)
    for heading, side in (("pages", "left"), ("number", "right"), ("size", "right"), ("", "right"), ("", "left")):
        table.add_column(heading, justify=side)  # type: ignore[arg-type]
    total = max(1, found.total)
    for name, count in found.classes.items():
        bar = "█" * round(40 * count / total)
        table.add_row(name, str(count), human(count * 4096), f"{100 * count / total:.1f}%", bar)
    table.add_row("all", str(found.total), human(found.total * 4096), "", "")
    console.print()
    console.print(table)
    _warn(found.complete, found.consistent, found.warnings)
