"""hibernate and resume."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kjump.cli.arguments import check_saved, check_second_kernel, check_target, need_root, open_saved, target_named
from kjump.cli.options import (
    ACCEPT_UNSEEN,
    KJUMP_INITRD,
    LEVEL,
    OFFSET,
    OVERWRITE,
    RESTORING_KERNEL,
    SAVED,
    SECOND_KERNEL,
    SIZE,
    WINDOW_PLACE,
    Renamed,
    human,
    print_json,
)
from kjump.cli.progress import step
from kjump.hibernate import DEFAULT_WATCHDOG
from kjump.image import DEFAULT_LEVEL
from kjump.kexec.window import DEFAULT_SIZE
from kjump.peers import FOLDER
from kjump.ranges import Range

if TYPE_CHECKING:
    from kjump.hibernate.suspend import Hibernation
    from kjump.peers.on_disk import Unpacking


@click.command()
@click.option(
    "--to",
    "target",
    metavar="TARGET",
    required=True,
    callback=target_named,
    help="Block device, or file of `kjump target create`; what it holds is lost.",
)
@SECOND_KERNEL
@KJUMP_INITRD
@WINDOW_PLACE
@click.option("--window-size", type=SIZE, help="Size of a window to find (default: 128M, less when memory is short).")
@click.option("--level", type=LEVEL, default=str(DEFAULT_LEVEL), show_default=True, help="zstd level; auto: measured.")
@click.option("--append", default="", help="More options for the second kernel's command line.")
@click.option(
    "--time-limit", type=click.FloatRange(0), default=0, help="Seconds it may take (default: by size of RAM)."
)
@click.option("--watchdog", type=click.IntRange(1), default=DEFAULT_WATCHDOG, show_default=True, hidden=True)
@OVERWRITE
@ACCEPT_UNSEEN
@click.option("--json", "as_json", is_flag=True, help="Print what happened as one JSON object.")
@click.option("--fault", default="", hidden=True)
def hibernate_command(
    target: str,
    kernel: Path | None,
    initrd: Path | None,
    window: Range | None,
    window_size: int | None,
    level: int,
    append: str,
    time_limit: float,
    watchdog: int,
    force: bool,
    accept_unseen: tuple[str, ...],
    as_json: bool,
    fault: str,
) -> None:
    """Save this system and switch off; the next boot resumes it.

    Returns when the system has been resumed, or at once with the reason when it cannot be saved.
    """
    check_target(target)
    check_second_kernel(kernel, initrd)
    need_root()
    particular = bool(kernel or initrd or window or append)
    ahead = _unpacked_ahead()
    # Imported only now, so that other CPUs unpack the kernel on standby meanwhile.
    from kjump.hibernate import preflight
    from kjump.hibernate.suspend import TripRequest, default_initrd, default_kernel, hibernate, raise_unless_resumed

    on_standby = _goes_on_standby(ahead, particular=particular)
    size = window.size if window else window_size or (DEFAULT_SIZE if on_standby else preflight.window_size_that_fits())
    request = TripRequest(
        target=target,
        kernel=kernel or default_kernel(),
        initrd=initrd or default_initrd(),
        window=window,
        window_size=size,
        level=level,
        force=force,
        accept_unseen=accept_unseen,
        append=append,
        time_limit=time_limit,
        watchdog=watchdog,
        fault=fault,
    )
    needed = None if on_standby else size
    preflight.require(preflight.checks(target=target, window_size=needed, accept_unseen=accept_unseen))
    if on_standby:
        from kjump.peers.standby import travel

        result = hibernate(request, tell=step, go=partial(travel, ahead=ahead))
    else:
        result = hibernate(request, tell=step)
    if as_json:
        print_json(result.to_json())
    elif result.resumed:
        _describe(result)
    for line in () if as_json else result.report.log:
        click.echo(f"second kernel: {line}", err=True)
    raise_unless_resumed(result)


def _unpacked_ahead() -> Unpacking | None:
    """Begin to unpack the kernel on standby from disk, if there is one, while modules are imported."""
    if not FOLDER.exists():
        return None
    from kjump.peers import prefetch

    return prefetch.unpack_ahead()


def _goes_on_standby(ahead: Unpacking | None, *, particular: bool) -> bool:
    """Tell whether to use a kernel on standby: if there is one, and no `particular` kernel is wanted; else drop
    `ahead`.

    UsageError when other peers are resident, whose memory a new load would take.
    """
    if not FOLDER.exists():
        return False  # without importing the module of the standby
    from kjump.peers import standby
    from kjump.peers.lifecycle import refuse_if_peers_are_resident

    if not particular and standby.is_ready(ahead=ahead):
        return True
    if ahead is not None:
        ahead.drop()
    refuse_if_peers_are_resident()
    return False


def _describe(result: Hibernation) -> None:
    saved, phases = result.report.saved, result.phases
    sizes, seconds = "", ""
    if saved is not None:
        sizes = f": {human(saved.kept_bytes)} of memory in an image of {human(saved.image_bytes)}"
        seconds = f"saved in {saved.write_seconds:.1f} s, "
    click.echo(
        f"resumed{sizes}; prepared in {phases['prepare']:.1f} s, {seconds}"
        f"restored in {result.report.restore_seconds:.1f} s; away for {phases['away']:.0f} s"
    )


@click.command()
@SAVED
@OFFSET
@RESTORING_KERNEL
@KJUMP_INITRD
@click.option("--dry-run", is_flag=True, help="Only say whether it would work.")
@click.option(
    "--although-mounted",
    "--force",
    "although_mounted",
    cls=Renamed,
    is_flag=True,
    help="Resume although file systems are mounted here; they may be damaged.",
)
def resume_command(
    target: str, offset: int, kernel: Path | None, initrd: Path | None, dry_run: bool, although_mounted: bool
) -> None:
    """Replace this running system by a hibernated one.

    A boot does so by itself when its initramfs is kjump's and kjump.resume= names the target.
    """
    from kjump.hibernate.report import Report
    from kjump.hibernate.resume import open_for_resume, prepare_resume, refuse_if_mounted
    from kjump.hibernate.suspend import default_initrd, default_kernel

    check_second_kernel(kernel, initrd)
    check_saved(target, offset)
    need_root()
    with open_saved(target, offset, writable=not dry_run) as opened:
        step("looking at the image")
        kernel_bytes = (kernel or default_kernel()).read_bytes()
        initrd_bytes = (initrd or default_initrd()).read_bytes()
        prepared = prepare_resume(opened, open_for_resume(opened), kernel_bytes, initrd_bytes)
        prepared.plan(Report())
        if not although_mounted:
            refuse_if_mounted()
        if dry_run:
            release = prepared.opened.contents.facts.system.release
            click.echo(f"the image on {target} (kernel {release}) can be resumed")
            return
        step("jumping to the saved system")
        prepared.go(Report())
