"""Terminal output of demonstrations: steps while one runs, tables and checks at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import click

from kjump.cli.options import human

if TYPE_CHECKING:
    from kjump.lab.big_image import BigImageDemo
    from kjump.lab.calling import CallDemo
    from kjump.lab.hibernation import HibernationDemo
    from kjump.lab.rollback import RollbackDemo
    from kjump.lab.snapshot import SnapshotDemo
    from kjump.lab.switching import SwitchingDemo

_PHASES = {
    "prepare": "preflight, a window, the second kernel is loaded",
    "jump": "the system is frozen, and jumps",
    "boot_b": "the second kernel boots in its window",
    "save": "the second kernel saves the system's memory to the disk",
    "off": "power off",
    "boot": "power on, the boot kernel finds the image",
    "boot_c": "a third kernel boots in the window",
    "restore": "the boot kernel, or the third, puts the system's pages back",
    "back": "the system is back in user space",
    "again": "a second kernel stands by again",
}


def clock() -> Callable[[str], None]:
    """Return a function that prints a line, preceded by the seconds since the call of `clock`."""
    begun = time.monotonic()

    def tell(text: str) -> None:
        click.echo(f"[{time.monotonic() - begun:6.1f} s] {text}", err=True)

    return tell


def show_checks(checks: Mapping[str, bool]) -> None:
    """Print each check, and whether it held."""
    for name, good in checks.items():
        click.echo(f"{'ok  ' if good else 'FAIL'} {name}")


def show_hibernation(result: HibernationDemo) -> None:
    """Print the times of a hibernation's phases, and the sizes."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Linux {result.kernel}, {human(result.memory_bytes)} of RAM", title_justify="left")
    table.add_column("phase")
    table.add_column("seconds", justify="right")
    table.add_column("")
    for name, seconds in result.phases.items():
        if seconds:  # 0: the phase did not occur
            table.add_row(name, f"{seconds:.2f}", _PHASES[name])
    console = Console(width=100)
    console.print(table)
    sizes = map(human, (result.saved_bytes, result.image_bytes, result.window_bytes))
    console.print("{} of memory saved in {}, window {}".format(*sizes))
    show_checks(result.checks)


def show_big_images(results: Sequence[BigImageDemo]) -> None:
    """Print sizes and times of the images of nearly full machines, and swsusp's refusals."""
    for result in results:
        click.echo(
            f"Linux {result.kernel}, {human(result.memory_bytes)} of RAM, {result.share:.0%} of it random bytes: "
            f"{human(result.saved_bytes)} of memory in an image of {human(result.image_bytes)}, "
            f"saved in {result.phases['save']:.1f} s, restored in {result.phases['restore']:.1f} s"
        )
        click.echo(f"     swsusp in the same machine: {result.swsusp.errno}")
        for line in result.swsusp.log:
            click.echo(f"       {line}")
        show_checks(result.checks)


def show_calls(result: CallDemo) -> None:
    """Print the times of calls."""
    for name, seconds in result.latency.items():
        click.echo(f"{name}: {seconds * 1000:.1f} ms")
    show_checks(result.checks)


def show_switches(result: SwitchingDemo) -> None:
    """Print the times of switches."""
    for label, times in result.times.items():
        words = ", ".join(f"{name} {value}" for name, value in times.items())
        click.echo(f"{label}: {words} (seconds to a peer and back)")
    show_checks(result.checks)


def show_snapshots(result: SnapshotDemo) -> None:
    """Print the pause of each snapshot, and the counter's value that each reader found in it."""
    for number, taken in enumerate(result.snapshots, 1):
        steps = ", ".join(f"{name} {seconds:.2f}" for name, seconds in taken.phases.items())
        click.echo(f"{number}: paused for {taken.pause:.2f} s ({steps}); {human(taken.image_bytes)}")
        click.echo(f"   the process found {', '.join(map(str, taken.values))}; {taken.seen}")
    for why in result.left_out:
        click.echo(f"not tried: {why}")
    show_checks(result.checks)


def show_roll_backs(result: RollbackDemo) -> None:
    """Print the times of roll-backs, and the message of the one that was refused."""
    click.echo(f"snapshot: paused for {result.pause:.2f} s")
    for seconds, error in zip(result.seconds, result.clock_errors, strict=True):
        click.echo(f"rolled back in {seconds:.1f} s; the wall clock is off by {error:.2f} s")
    click.echo(f"without a hook: {result.refusal}")
    show_checks(result.checks)
