"""snapshot and rollback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from kjump.cli.arguments import check_saved, check_second_kernel, check_target, need_root, open_saved, target_named
from kjump.cli.options import (
    ACCEPT_UNSEEN,
    DUMP_LEVEL,
    FILE,
    KJUMP_INITRD,
    OFFSET,
    OVERWRITE,
    PLAIN_LEVEL,
    RESTORING_KERNEL,
    SAVED,
    SECOND_KERNEL,
    WINDOW_PLACE,
    WINDOW_SIZE,
    Renamed,
    human,
    print_json,
)
from kjump.cli.progress import step
from kjump.hibernate import preflight
from kjump.hibernate.away import Tell
from kjump.hibernate.hooks import TIMEOUT, read_hook
from kjump.hibernate.snapshot import PAUSE, Snapshot, numbered_file, raise_unless_taken, snapshot
from kjump.hibernate.suspend import Trip, TripRequest, default_initrd, default_kernel, travel
from kjump.image import DEFAULT_LEVEL
from kjump.peers import standby
from kjump.peers.lifecycle import refuse_if_peers_are_resident
from kjump.ranges import Range


@click.command()
@click.option(
    "--to",
    "target",
    metavar="TARGET",
    required=True,
    callback=target_named,
    help="Block device or target file, whose contents are lost, or a folder for numbered files.",
)
@click.option("--hook", type=FILE, help="Program that puts file systems aside (save) and back (restore).")
@click.option("--hook-tool", "tools", type=FILE, multiple=True, help="Static program that the hook needs: busybox.")
@click.option("--hook-timeout", type=click.FloatRange(0.1), default=TIMEOUT, show_default=True, help="In seconds.")
@click.option(
    "--dump-level",
    type=DUMP_LEVEL,
    help="Make a debugging dump instead: leave pages out, as `kjump dump` does; there is no way back to it.",
)
@click.option(
    "--level",
    "--compression",
    "level",
    cls=Renamed,
    type=PLAIN_LEVEL,
    default=DEFAULT_LEVEL,
    show_default=True,
    help="zstd level of the image.",
)
@SECOND_KERNEL
@KJUMP_INITRD
@WINDOW_PLACE
@WINDOW_SIZE
@OVERWRITE
@ACCEPT_UNSEEN
@click.option("--json", "as_json", is_flag=True, help="Print what happened as one JSON object.")
@click.option("--fault", default="", hidden=True)
def snapshot_command(
    target: str,
    hook: Path | None,
    tools: tuple[Path, ...],
    hook_timeout: float,
    dump_level: int | None,
    level: int,
    kernel: Path | None,
    initrd: Path | None,
    window: Range | None,
    window_size: int,
    force: bool,
    accept_unseen: tuple[str, ...],
    as_json: bool,
    fault: str,
) -> None:
    """Save this system to a target, and go on.

    Comes back once more each time the system is rolled back to the snapshot.
    """
    check_target(target, folder=True)
    check_second_kernel(kernel, initrd)
    _check_hook(target, hook, tools, dump_level)
    hook_to_run = read_hook(hook, tools, hook_timeout) if hook else None
    need_root()
    request = TripRequest(
        target=target,
        kernel=kernel or default_kernel(),
        initrd=initrd or default_initrd(),
        window=window,
        window_size=window_size,
        level=level,
        force=force,
        accept_unseen=accept_unseen,
        dump_level=dump_level,
        hook=hook_to_run,
        fault=fault,
    )
    # Not with a hook: it is added to an initramfs, so a kernel must be booted for it.
    on_standby = standby.is_ready() and not (hook or kernel or initrd or window)
    device = None if Path(target).is_dir() else target
    checks = preflight.checks(
        target=device,
        window_size=window.size if window else window_size,
        accept_unseen=accept_unseen if dump_level is None else None,
    )
    if on_standby:
        preflight.require(c for c in checks if c.name not in ("window", "free memory"))
    else:
        refuse_if_peers_are_resident()
        preflight.require(checks)
    result = _take(request, standby.travel if on_standby else travel)
    if as_json:
        print_json(result.to_json())
    elif result.taken:
        click.echo(_describe(result))
    raise_unless_taken(result)


def _check_hook(target: str, hook: Path | None, tools: tuple[Path, ...], dump_level: int | None) -> None:
    """Raise click.UsageError when the options about the hook do not go with each other or with `target`."""
    if tools and not hook:
        raise click.UsageError("--hook-tool is of no use without --hook")
    if hook and dump_level is not None:
        raise click.UsageError("--hook is of no use with --dump-level: there is no way back to a dump")
    if hook and (Path(target).is_file() or Path(target).is_dir()):
        raise click.UsageError("--hook needs a device as target: it would put a file back to what it was before")


def _take(request: TripRequest, go: Callable[[TripRequest, Tell], Trip]) -> Snapshot:
    """Take the snapshot; if the target is a folder, to its next numbered file, which is removed after a failure."""
    made = numbered_file(Path(request.target)) if Path(request.target).is_dir() else None
    taken = False
    try:
        to = request if made is None else replace(request, target=str(made))
        result = snapshot(to, tell=step, go=go)
        taken = result.taken
        return result
    finally:
        if made is not None and not taken:
            made.unlink()


def _describe(result: Snapshot) -> str:
    if result.rolled_back:
        times = f"for the {result.count}. time" if result.count > 1 else "for the first time"
        return (
            f"rolled back to the snapshot on {result.target}, {times}; {result.phases['away']:.0f} s later than it was "
            f"taken; restored in {result.report.restore_seconds:.1f} s"
        )
    saved, phases = result.report.saved, result.phases
    if saved is None:
        return f"{result.kind} on {result.target}: the second kernel did not say how large it is"
    steps = ", ".join(f"{name} {phases[name]:.2f}" for name in PAUSE)
    return (
        f"{result.kind} on {result.target}: {human(saved.kept_bytes)} of memory in an image of "
        f"{human(saved.image_bytes)}; paused for {phases['pause']:.2f} s ({steps})"
    )


@click.command()
@SAVED
@OFFSET
@RESTORING_KERNEL
@KJUMP_INITRD
@click.option("--dry-run", is_flag=True, help="Only say whether it would work.")
def rollback_command(target: str, offset: int, kernel: Path | None, initrd: Path | None, dry_run: bool) -> None:
    """Replace this running system by a snapshot.

    Everything since the snapshot is lost, but for what a hook of the snapshot keeps.
    """
    from kjump.hibernate.rollback import rollback

    check_second_kernel(kernel, initrd)
    check_saved(target, offset)
    need_root()
    with open_saved(target, offset, writable=not dry_run) as opened:
        rollback(
            opened,
            (kernel or default_kernel()).read_bytes(),
            (initrd or default_initrd()).read_bytes(),
            dry_run=dry_run,
            tell=step,
        )
    click.echo(f"the snapshot on {target} can be rolled back to")
