"""What is going on, for people and for logs: a bar on a terminal, a line for each step where there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

Report = Callable[[float, str], None]
"""Takes how much is done, from 0 to 1, and a few words about it."""

_LINES = 10


def step(text: str) -> None:
    """Say in a line on standard error what is done next."""
    click.echo(f"kjump: {text}", err=True)


@contextmanager
def progress(what: str) -> Iterator[Report]:
    """Show on standard error how far something is: a bar on a terminal, else a line for each tenth of it."""
    if not sys.stderr.isatty():
        yield _lines(what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), TextColumn("{task.percentage:3.0f}%  {task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share, words: bar.update(task, completed=share, description=words)


def _lines(what: str) -> Report:
    said = -1

    def report(share: float, words: str) -> None:
        nonlocal said
        tenth = int(share * _LINES)
        if tenth > said:
            said = tenth
            step(f"{what}: {100 * tenth // _LINES}%{', ' if words else ''}{words}")

    return report
