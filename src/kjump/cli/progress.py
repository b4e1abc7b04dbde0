"""Progress output: a bar on a terminal, else a line for each step."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

Report = Callable[[float, str], None]
"""A function that takes the fraction done (0 to 1) and a short text."""

_LINES = 10


def step(text: str) -> None:
    """Print the next step as a line on standard error."""
    click.echo(f"kjump: {text}", err=True)


@contextmanager
def progress(what: str) -> Iterator[Report]:
    """Show the progress of `what` on standard error: a bar on a terminal, else a line for each tenth."""
    if not sys.stderr.isatty():
        yield _Lines(what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), TextColumn("{task.percentage:3.0f}%  {task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share, words: bar.update(task, completed=share, description=words)


class _Lines:
    """Prints a line when a job has begun, and for each tenth of it."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._begun = time.monotonic()
        self._told = -1

    def __call__(self, share: float, what: str) -> None:
        tenth = int(share * _LINES)
        if tenth > self._told:
            self._told = tenth
            seconds = time.monotonic() - self._begun
            click.echo(f"{self._title}: {share:4.0%} after {seconds:.0f} s, {what}", err=True)
