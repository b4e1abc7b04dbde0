"""lab demo: demonstrations and the fault campaign, in virtual machines, each with its checks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from kjump.cli import demo_output
from kjump.cli.logged_folder import LoggedFolder
from kjump.cli.options import SIZE, human, print_json
from kjump.cli.progress import progress
from kjump.lab import requirements

if TYPE_CHECKING:
    from kjump.lab.checks import Checked, Tell
    from kjump.lab.machine.kernel import LabKernel

_Command = TypeVar("_Command", bound=Callable[..., None])
_Result = TypeVar("_Result", bound="Checked")

_keep = click.option(
    "--keep", type=click.Path(file_okay=False, path_type=Path), help="Keep disks and console logs there."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def kernel_option(version: str = "6.12", why: str = "Kernel version.") -> Callable[[_Command], _Command]:
    """Return the option for a kernel's version; another default is used if the source of `version` is not installed."""
    return click.option("--kernel", "version", default=partial(_installed, version), show_default=version, help=why)


def _installed(version: str) -> str:
    from kjump.lab.machine import kernel_source

    return kernel_source.preferred(version)


def _machine(memory: str, *, version: str = "6.12", why: str = "Kernel version.") -> Callable[[_Command], _Command]:
    """Return the options for a demonstration's machine: kernel, RAM, CPUs."""

    def add(command: _Command) -> _Command:
        for option in (
            click.option("--cpu", default="max", show_default=True, help="QEMU CPU model."),
            click.option(
                "--cpus", type=click.IntRange(1, 64), default=2, show_default=True, help="CPUs of the machine."
            ),
            click.option("--memory", type=SIZE, default=memory, show_default=True, help="RAM of the machine."),
            kernel_option(version, why),
        ):
            command = option(command)
        return command

    return add


def _get_ready(*versions: str, emulator: bool = False, debug_info: bool = False) -> None:
    """Check that this host has what a demonstration needs, and build its kernels (minutes, the first time)."""
    requirements.check(emulator=emulator)
    for version in dict.fromkeys(versions):
        build_kernel(version, debug_info=debug_info)


def build_kernel(version: str, *, arch: str = "x86_64", debug_info: bool = False) -> LabKernel:
    """Build a kernel with a progress bar, or take it from the cache."""
    from kjump.lab.machine import kernel_source

    with progress(f"linux {version}") as report:
        return kernel_source.build(
            version, arch=arch, debug_info=debug_info, progress=lambda share, what: report(share, what[-60:])
        )


def _run(
    keep: Path | None, as_json: bool, run: Callable[[Path, Tell], _Result], show: Callable[[_Result], None]
) -> None:
    """Run a demonstration in a folder, print its result, and exit with 1 if a check failed."""
    with LoggedFolder(keep) as logs:
        result = run(logs.folder, demo_output.clock())
        logs.failed = not result.ok
        if as_json:
            print_json(result.to_json())
        else:
            show(result)
    sys.exit(0 if result.ok else 1)


@click.group()
def demo() -> None:
    """Demonstrations and faults in virtual machines."""


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
    _get_ready(version)
    from kjump.lab import hibernation
    from kjump.lab.machine.installation import Hardware

    hardware = Hardware(memory, cpus, cpu)
    how = hibernation.HibernationOptions(fill, rounds, options, target == "file", standby or "")
    _run(
        keep,
        as_json,
        lambda folder, tell: hibernation.run(folder, version=version, hardware=hardware, how=how, tell=tell),
        demo_output.show_hibernation,
    )


@demo.command("faults")
@kernel_option()
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
    _get_ready(version)
    from kjump.lab.campaign import catalogue
    from kjump.lab.campaign.campaign import QUICK, Campaign, CampaignSize, run

    tell = demo_output.clock()
    size = QUICK if quick else CampaignSize()
    with (
        LoggedFolder(keep) as logs,
        Campaign(logs.folder, version=version, seed=seed, size=size, jobs=jobs, tell=tell) as campaign,
    ):
        for finding in run(campaign, catalogue.FAULTS, only):
            logs.failed |= not finding.ok
            if not as_json:
                click.echo(f"{'ok  ' if finding.ok else 'FAIL'} {finding.name}: {finding.expected}: {finding.seen}")
            else:
                tell(f"{'ok' if finding.ok else 'FAIL'}: {finding.seen}")
                print_json(finding.to_json())
    sys.exit(1 if logs.failed else 0)


@demo.command("big-image")
@kernel_option()
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
    _get_ready(version)
    from kjump.lab import big_image
    from kjump.lab.machine.installation import Hardware

    tell = demo_output.clock()
    results = []
    for size, usual in [(memory, 0.65)] if memory else [(1 << 30, 0.65), (4 << 30, 0.88)]:
        tell(f"a machine of {human(size)}")
        with LoggedFolder(keep and keep / f"{size >> 20}M") as logs:
            hardware = Hardware(size, cpus, cpu)
            result = big_image.run(logs.folder, version=version, hardware=hardware, share=share or usual, tell=tell)
            logs.failed = not result.ok
            results.append(result)
    if as_json:
        print_json({"ok": all(r.ok for r in results), "machines": [r.to_json() for r in results]})
    else:
        demo_output.show_big_images(results)
    sys.exit(0 if all(r.ok for r in results) else 1)


@demo.command("call")
@_machine("512M")
@click.option("--calls", type=click.IntRange(2), default=100, show_default=True, help="Calls in a row.")
@_keep
@_json
def demo_call(version: str, memory: int, cpus: int, cpu: str, calls: int, keep: Path | None, as_json: bool) -> None:
    """Call programs and the BIOS from a running Linux.

    What they return is compared with the emulated machine.
    """
    _get_ready(version, emulator=True)
    from kjump.lab import calling
    from kjump.lab.machine.installation import Hardware

    hardware = Hardware(memory, cpus, cpu)
    _run(
        keep,
        as_json,
        lambda folder, tell: calling.run(folder, version=version, hardware=hardware, calls=calls, tell=tell),
        demo_output.show_calls,
    )


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
    _get_ready(version, peer_version or version)
    from kjump.lab import switching
    from kjump.lab.machine.installation import Hardware

    hardware = Hardware(memory, cpus, cpu)
    how = switching.SwitchingOptions(rounds, rounds_of_three, jumps, options, peer_version)
    _run(
        keep,
        as_json,
        lambda folder, tell: switching.run(folder, version=version, hardware=hardware, how=how, tell=tell),
        demo_output.show_switches,
    )


@demo.command("snapshot")
@_machine("768M", version="6.1", why="Kernel version; Debian's crash knows 6.1.")
@click.option("--count", type=click.IntRange(1, 20), default=5, show_default=True, help="Snapshots.")
@_keep
@_json
def demo_snapshot(version: str, memory: int, cpus: int, cpu: str, count: int, keep: Path | None, as_json: bool) -> None:
    """Take snapshots of a Linux at work, and open each.

    With drgn and crash: is it the moment it was taken at?
    """
    _get_ready(version, debug_info=True)
    from kjump.lab import snapshot
    from kjump.lab.machine.installation import Hardware

    hardware = Hardware(memory, cpus, cpu)
    _run(
        keep,
        as_json,
        lambda folder, tell: snapshot.run(folder, version=version, hardware=hardware, count=count, tell=tell),
        demo_output.show_snapshots,
    )


@demo.command("rollback")
@_machine("768M")
@_keep
@_json
def demo_rollback(version: str, memory: int, cpus: int, cpu: str, keep: Path | None, as_json: bool) -> None:
    """Destroy a Linux, and roll it back, disks and all; twice."""
    _get_ready(version)
    from kjump.lab import rollback
    from kjump.lab.machine.installation import Hardware

    hardware = Hardware(memory, cpus, cpu)
    _run(
        keep,
        as_json,
        lambda folder, tell: rollback.run(folder, version=version, hardware=hardware, tell=tell),
        demo_output.show_roll_backs,
    )
