"""peer: look at this system from a second kernel."""

from __future__ import annotations

from pathlib import Path

import click

from kjump.cli.arguments import check_second_kernel, need_root
from kjump.cli.options import KJUMP_INITRD, SECOND_KERNEL, WINDOW_PLACE, WINDOW_SIZE
from kjump.cli.progress import step
from kjump.errors import JumpError, UsageError
from kjump.hibernate import preflight
from kjump.hibernate.post_mortem import reason
from kjump.hibernate.suspend import TripRequest, default_initrd, default_kernel, travel
from kjump.kexec.mailbox import Outcome
from kjump.peers.lifecycle import refuse_if_peers_are_resident
from kjump.ranges import Range

_VIEWS = ("info", "dump", "drgn")


@click.command(context_settings={"ignore_unknown_options": True})
@SECOND_KERNEL
@KJUMP_INITRD
@WINDOW_PLACE
@WINDOW_SIZE
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="info|dump|drgn [OPTIONS]")
def peer_command(
    kernel: Path | None, initrd: Path | None, window: Range | None, window_size: int, words: tuple[str, ...]
) -> None:
    """Look at this system from a second kernel, while it stands still.

    In a second kernel that kjump has started the same command looks at the system that is parked. Paths are those
    there: `dump` writes to a device (with --force), or a file on what a hook or a shell has mounted. The options of
    this command come first.
    """
    if words[0] not in _VIEWS:
        raise UsageError(f"`kjump peer` knows {', '.join(_VIEWS)}, not {words[0]!r}")
    check_second_kernel(kernel, initrd)
    need_root()
    request = TripRequest(
        target="",
        kernel=kernel or default_kernel(),
        initrd=initrd or default_initrd(),
        window=window,
        window_size=window_size,
        look=words,
    )
    refuse_if_peers_are_resident()
    size = window.size if window else window_size
    preflight.require(preflight.checks(target=None, window_size=size, accept_unseen=None))
    trip = travel(request, step)
    if trip.outcome != Outcome.DONE:
        raise JumpError(reason(trip.outcome, trip.report))
    click.echo(trip.report.output)
    if trip.report.cut:
        click.echo(f"kjump: {trip.report.cut} characters more do not fit in the mailbox", err=True)
