"""Option types and small output helpers that several verbs share."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from kjump.cli.arguments import target_named
from kjump.kexec.plan import Plan
from kjump.kexec.window import DEFAULT_SIZE
from kjump.ranges import Range

_FASTEST, _SMALLEST = -50, 19
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Size(click.ParamType[int]):
    """A number of bytes with an optional unit K, M, G or T (powers of 1024), as 512M."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(0x[0-9a-fA-F]+|\d+)([KMGT]?)(?:i?B)?", value)
        if match is None:
            self.fail(f"{value!r} is not a size: give bytes, or a number with K, M, G or T", param, ctx)
        return int(match[1], 0) * _UNITS[match[2]]


class Window(click.ParamType[Range]):
    """A physical range START,SIZE, as 0x10000000,128M."""

    name = "start,size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Range:
        """Return the range."""
        if isinstance(value, Range):
            return value
        start, comma, size = str(value).partition(",")
        if not comma:
            self.fail(f"{value!r} is not START,SIZE", param, ctx)
        return Range.of_size(SIZE.convert(start, param, ctx), SIZE.convert(size, param, ctx))


class Number(click.ParamType[int]):
    """A number, decimal or with 0x."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        try:
            return value if isinstance(value, int) else int(value, 0)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)


class Level(click.ParamType[int]):
    """A zstd level; the word `zero` is accepted for level 0."""

    name = "level"

    def __init__(self, zero: str = "") -> None:
        """Use `zero` as the word for level 0, if given."""
        self._zero = zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the level."""
        if value == self._zero:
            return 0
        try:
            level = int(value)
        except ValueError:
            level = _FASTEST - 1
        if not _FASTEST <= level <= _SMALLEST:
            word = f", or {self._zero}" if self._zero else ""
            self.fail(f"{value!r} is no zstd level: give a number from {_FASTEST} to {_SMALLEST}{word}", param, ctx)
        return level


class Renamed(click.Option):
    """An option with former names, which are still accepted but not shown in the help: all but its first name."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return what the help shows: the first name."""
        names = self.opts
        self.opts = names[:1]
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = names


LEVEL = Level("auto")
PLAIN_LEVEL = Level()
DUMP_LEVEL = click.IntRange(0, 31)
"""A dump level: a sum that says which pages a dump leaves out."""
NUMBER = Number()
SIZE = Size()
WINDOW = Window()

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
"""A file that can be read."""

SECOND_KERNEL = click.option("--kernel", type=FILE, help="Second kernel (default: the running one's bzImage in /boot).")
RESTORING_KERNEL = click.option(
    "--kernel", type=FILE, help="Kernel that restores (default: the running one's bzImage in /boot)."
)
KJUMP_INITRD = click.option("--initrd", type=FILE, help="kjump's initramfs (default: /boot/kjump-initramfs.img).")
OVERWRITE = click.option(
    "--overwrite",
    "--force",
    "force",
    cls=Renamed,
    is_flag=True,
    help="Overwrite a file system or other signature on the device.",
)
ACCEPT_UNSEEN = click.option(
    "--accept-unseen",
    metavar="TYPE",
    multiple=True,
    help="Take a mounted file system of this type although changes by another system are not noticed: "
    "resuming then destroys it.",
)
SAVED = click.option(
    "--from",
    "target",
    metavar="TARGET",
    required=True,
    callback=target_named,
    help="Device or target file that holds what was saved.",
)
OFFSET = click.option(
    "--offset",
    type=click.IntRange(0),
    default=0,
    help="First block of a target file on the device, as kjump.resume_offset=.",
)
WINDOW_PLACE = click.option("--window", type=WINDOW, help="Where the second kernel lives: START,SIZE (default: found).")
WINDOW_SIZE = click.option(
    "--window-size", type=SIZE, default=DEFAULT_SIZE, show_default="128M", help="Size of a window to find."
)
"""Options that several verbs have, as decorators."""


def human(size: float) -> str:
    """Return `size` bytes as text with a unit, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def print_json(value: Any) -> None:
    """Print `value` as one JSON object on a line."""
    click.echo(json.dumps(value))


def plan_as_json(plan: Plan) -> dict[str, object]:
    """Return `plan` as a JSON object, without the segments' data."""
    segments = [
        {"name": s.name, "address": s.address, "memory_size": s.memory_size, "data_size": len(s.data)}
        for s in plan.segments
    ]
    return {"entry": plan.entry, "flags": plan.flags, "segments": segments}


def show_plan(plan: Plan) -> None:
    """Print `plan` as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"entry {plan.entry:#x}, flags {plan.flags:#x}", title_justify="left")
    for heading in ("segment", "from", "to", "memory", "data"):
        table.add_column(heading, justify="left" if heading == "segment" else "right")
    for segment in plan.segments:
        last = segment.range.end - 1
        sizes = (human(segment.memory_size), human(len(segment.data)))
        table.add_row(segment.name, f"{segment.address:#x}", f"{last:#x}", *sizes)
    Console(width=100).print(table)
