"""lab demo: the real thing, in virtual machines, each with its checks."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from kjump.cli.options import SIZE, human, print_json
from kjump.errors import LabError

if TYPE_CHECKING:
    from kjump.lab.big_image import BigImage

_Command = TypeVar("_Command", bound=Callable[..., None])

_keep = click.option(
    "--keep", type=click.Path(file_okay=False, path_type=Path), help="Keep disks and console logs there."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def _machine(memory: str, *, version: str = "6.12", why: str = "Kernel version.") -> Callable[[_Command], _Command]:
    """Return the options that say on what a demonstration plays: kernel, RAM, CPUs."""

    def add(command: _Command) -> _Command:
        for option in (
            click.option("--cpu", default="max", show_default=True, help="QEMU CPU model."),
            click.option(
                "--cpus", type=click.IntRange(1, 64), default=2, show_default=True, help="CPUs of the machine."
            ),
            click.option("--memory", type=SIZE, default=memory, show_default=True, help="RAM of the machine."),
            click.option("--kernel", "version", default=version, show_default=True, help=why),
        ):
            command = option(command)
        return command

    return add


@contextmanager
def logged_folder(keep: Path | None) -> Iterator[Path]:
    """Give `keep`, made if need be, or a folder that goes at the end; what a failed one's consoles said stays."""
    with tempfile.TemporaryDirectory(prefix="kjump-demo-") as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            yield folder
        except LabError as error:
            logs = folder if keep else _keep_logs(folder)
            raise LabError(f"{error} (console logs: {logs})") from None


def _keep_logs(folder: Path) -> Path:
    """Copy the console logs in and under `folder` to a new folder, and return that."""
    kept = Path(tempfile.mkdtemp(prefix="kjump-logs-"))
    for log in folder.rglob("*.log"):
        copy = kept / log.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, copy)
    return kept


def _clock() -> Callable[[str], None]:
    """Return a function that prints a line with the seconds since now in front."""
    begun = time.monotonic()

    def tell(text: str) -> None:
        click.echo(f"[{time.monotonic() - begun:6.1f} s] {text}", err=True)

    return tell


def _show_checks(checks: dict[str, bool]) -> None:
    for name, good in checks.items():
        click.echo(f"{'ok  ' if good else 'FAIL'} {name}")


@click.group()
def demo() -> None:
    """Demonstrations: the real thing, in virtual machines."""


@demo.command("hibernate")
@_machine("768M")
@click.option("--fill", type=SIZE, default=0, help="Bytes of random memory more than the usual workload.")
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True, help="Hibernations in a row.")
@click.option("--options", default="", help="Kernel options for the first Linux.")
@click.option(
    "--target", type=click.Choice(["disk", "file"]), default="disk", show_default=True, help="Where the image goes."
)
@click.option("--standby", type=click.Choice(["memory", "disk"]), help="Where a second kernel stands by meanwhile.")
@_keep
@_json
def demo_hibernate(
    version: str,
    memory: int,
    cpus: int,
    cpu: str,
    fill: int,
    rounds: int,
    options: str,
    target: str,
    standby: str | None,
    keep: Path | None,
    as_json: bool,
) -> None:
    """Hibernate a Linux at work, and check its work.

    It is saved from a second kernel, switched off, and brought back.
    """
    from kjump.lab import hibernation
    from kjump.lab.machine.scene import Hardware

    tell = _clock()
    with logged_folder(keep) as folder:
        result = hibernation.run(
            folder,
            version=version,
            hardware=Hardware(memory, cpus, cpu),
            fill=fill,
            rounds=rounds,
            options=options,
            to_file=target == "file",
            standby=standby or "",
            tell=tell,
        )
    if as_json:
        print_json(result.as_json())
    else:
        _timeline(result)
    sys.exit(0 if result.ok else 1)


@demo.command("faults")
@click.option("--kernel", "version", default="6.12", show_default=True, help="Kernel version.")
@click.option("--only", multiple=True, metavar="NAME", help="Only this fault; may be given more than once.")
@click.option("--quick", is_flag=True, help="Few losses of power and flipped bits instead of 60 and 100.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the random moments and bits.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Machines at a time.")
@_keep
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each fault, a line each, as they come.")
def demo_faults(
    version: str, only: tuple[str, ...], quick: bool, seed: int, jobs: int, keep: Path | None, as_json: bool
) -> None:
    """Provoke what may go wrong, and say what came of it."""
    from kjump.lab.campaign import faults

    tell = _clock()
    ok = True
    size = faults.QUICK if quick else faults.Size()
    with (
        logged_folder(keep) as folder,
        faults.Campaign(folder, version=version, seed=seed, size=size, jobs=jobs, tell=tell) as campaign,
    ):
        for finding in faults.run(campaign, only):
            ok &= finding.ok
            if not as_json:
                click.echo(f"{'ok  ' if finding.ok else 'FAIL'} {finding.name}: {finding.expected}: {finding.seen}")
            else:
                tell(f"{'ok' if finding.ok else 'FAIL'}: {finding.seen}")
                print_json(vars(finding))
    sys.exit(0 if ok else 1)


@demo.command("big-image")
@click.option("--kernel", "version", default="6.12", show_default=True, help="Kernel version.")
@click.option("--memory", type=SIZE, help="RAM of the machine (default: 1G, then 4G).")
@click.option(
    "--share", type=click.FloatRange(0.1, 0.95), help="How much of it to fill (default: 0.65 of 1G, 0.88 of 4G)."
)
@click.option("--cpus", type=click.IntRange(1, 64), default=2, show_default=True, help="CPUs of the machine.")
@click.option("--cpu", default="max", show_default=True, help="QEMU CPU model.")
@_keep
@_json
def demo_big_image(
    version: str, memory: int | None, share: float | None, cpus: int, cpu: str, keep: Path | None, as_json: bool
) -> None:
    """Hibernate machines nearly full of random bytes.

    swsusp refuses them.
    """
    from kjump.lab import big_image
    from kjump.lab.machine.scene import Hardware

    tell = _clock()
    results = []
    for size, usual in [(memory, 0.65)] if memory else [(1 << 30, 0.65), (4 << 30, 0.88)]:
        tell(f"a machine of {human(size)}")
        with logged_folder(keep and keep / f"{size >> 20}M") as folder:
            hardware = Hardware(size, cpus, cpu)
            results.append(big_image.run(folder, version=version, hardware=hardware, share=share or usual, tell=tell))
    if as_json:
        print_json({"ok": all(r.ok for r in results), "machines": [r.as_json() for r in results]})
    else:
        _big_images(results)
    sys.exit(0 if all(r.ok for r in results) else 1)


@demo.command("call")
@_machine("512M")
@click.option("--calls", type=click.IntRange(2), default=100, show_default=True, help="Calls in a row.")
@_json
def demo_call(version: str, memory: int, cpus: int, cpu: str, calls: int, as_json: bool) -> None:
    """Call programs and the BIOS from a running Linux.

    What they return is compared with the emulated machine.
    """
    from kjump.lab import call
    from kjump.lab.machine.scene import Hardware

    tell = _clock()
    hardware = Hardware(memory, cpus, cpu)
    with logged_folder(None) as folder:
        result = call.run(folder, version=version, hardware=hardware, calls=calls, tell=tell)
    if as_json:
        print_json(result.as_json())
    else:
        for name, seconds in result.latency.items():
            click.echo(f"{name}: {seconds * 1000:.1f} ms")
        _show_checks(result.checks)
    sys.exit(0 if result.ok else 1)


@demo.command("switch")
@_machine("640M", why="Kernel version of the first Linux.")
@click.option("--peer-kernel", "peer_version", help="Kernel version of the peers (default: the first one's).")
@click.option("--rounds", type=click.IntRange(0), default=50, show_default=True, help="Round trips to one peer.")
@click.option("--rounds-of-three", type=click.IntRange(0), default=20, show_default=True, help="Rounds with two peers.")
@click.option("--jumps", type=click.IntRange(0), default=0, show_default=True, help="Jumps of a search for leaks.")
@click.option("--options", default="", help="Kernel options for the first Linux.")
@_keep
@_json
def demo_switch(
    version: str,
    peer_version: str | None,
    memory: int,
    cpus: int,
    cpu: str,
    rounds: int,
    rounds_of_three: int,
    jumps: int,
    options: str,
    keep: Path | None,
    as_json: bool,
) -> None:
    """Switch between running Linuxes, all of them at work.

    Two, and then three; that none has noticed is checked.
    """
    from kjump.lab import switching
    from kjump.lab.machine.scene import Hardware

    tell = _clock()
    with logged_folder(keep) as folder:
        result = switching.run(
            folder,
            version=version,
            peer_version=peer_version,
            hardware=Hardware(memory, cpus, cpu),
            rounds=rounds,
            rounds_of_three=rounds_of_three,
            jumps=jumps,
            options=options,
            tell=tell,
        )
    if as_json:
        print_json(result.as_json())
    else:
        for label, times in result.times.items():
            words = ", ".join(f"{name} {value}" for name, value in times.items())
            click.echo(f"{label}: {words} (seconds to a peer and back)")
        _show_checks(result.checks)
    sys.exit(0 if result.ok else 1)


def _big_images(results: Sequence[BigImage]) -> None:
    for result in results:
        click.echo(
            f"Linux {result.kernel}, {human(result.memory_bytes)} of RAM, {result.share:.0%} of it random bytes: "
            f"{human(result.saved_bytes)} of memory in an image of {human(result.image_bytes)}, "
            f"saved in {result.phases['save']:.1f} s, restored in {result.phases['restore']:.1f} s"
        )
        click.echo(f"     swsusp in the same machine: {result.swsusp['errno']}")
        for line in result.swsusp["log"]:
            click.echo(f"       {line}")
        _show_checks(result.checks)


@demo.command("snapshot")
@_machine("768M", version="6.1", why="Kernel version; Debian's crash knows 6.1.")
@click.option("--count", type=click.IntRange(1, 20), default=5, show_default=True, help="Snapshots.")
@_keep
@_json
def demo_snapshot(version: str, memory: int, cpus: int, cpu: str, count: int, keep: Path | None, as_json: bool) -> None:
    """Take snapshots of a Linux at work, and open each.

    With drgn and crash: is it the moment it was taken at?
    """
    from kjump.lab import snapshot
    from kjump.lab.machine.scene import Hardware

    with logged_folder(keep) as folder:
        result = snapshot.run(folder, version=version, hardware=Hardware(memory, cpus, cpu), count=count, tell=_clock())
    if as_json:
        print_json(result.as_json())
    else:
        for number, taken in enumerate(result.snapshots, 1):
            steps = ", ".join(f"{name} {seconds:.2f}" for name, seconds in taken.phases.items())
            click.echo(f"{number}: paused for {taken.pause:.2f} s ({steps}); {human(taken.image_bytes)}")
            click.echo(f"   the process found {taken.values}; {taken.seen}")
        for why in result.left_out:
            click.echo(f"not tried: {why}")
        _show_checks(result.checks)
    sys.exit(0 if result.ok else 1)


@demo.command("rollback")
@_machine("768M")
@_keep
@_json
def demo_rollback(version: str, memory: int, cpus: int, cpu: str, keep: Path | None, as_json: bool) -> None:
    """Destroy a Linux, and roll it back, disks and all; twice."""
    from kjump.lab import rollback
    from kjump.lab.machine.scene import Hardware

    with logged_folder(keep) as folder:
        result = rollback.run(folder, version=version, hardware=Hardware(memory, cpus, cpu), tell=_clock())
    if as_json:
        print_json(result.as_json())
    else:
        click.echo(f"snapshot: paused for {result.pause:.2f} s")
        for seconds, error in zip(result.seconds, result.clock_errors, strict=True):
            click.echo(f"rolled back in {seconds:.1f} s; the wall clock is off by {error:.2f} s")
        click.echo(f"without a hook: {result.refusal}")
        _show_checks(result.checks)
    sys.exit(0 if result.ok else 1)


def _timeline(result: object) -> None:
    from rich.console import Console
    from rich.table import Table

    from kjump.lab.hibernation import Demo

    assert isinstance(result, Demo)
    what = {
        "prepare": "preflight, window, load the second kernel",
        "jump": "this system freezes and jumps",
        "boot_b": "the second kernel boots in its window",
        "save": "it saves the memory to the disk",
        "off": "power off",
        "boot": "power on, the boot kernel finds the image",
        "boot_c": "the restoring kernel boots in the window",
        "restore": "the boot kernel, or that one, puts the pages back",
        "back": "the saved system is back in user space",
        "again": "a second kernel stands by again",
    }
    table = Table(title=f"Linux {result.kernel}, {human(result.memory_bytes)} of RAM", title_justify="left")
    table.add_column("phase")
    table.add_column("seconds", justify="right")
    table.add_column("")
    for name, seconds in result.phases.items():
        if seconds:  # what was not needed took none
            table.add_row(name, f"{seconds:.2f}", what[name])
    console = Console(width=100)
    console.print(table)
    sizes = map(human, (result.saved_bytes, result.image_bytes, result.window_bytes))
    console.print("{} of memory saved in {}, window {}".format(*sizes))
    _show_checks(result.checks)
