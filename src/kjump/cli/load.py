"""load, exec, unload, status: the two-step loader."""

from __future__ import annotations

import os
from pathlib import Path

import click

from kjump.cli.arguments import check_second_kernel, need_root
from kjump.cli.options import WINDOW_PLACE, WINDOW_SIZE, plan_as_json, print_json, show_plan
from kjump.errors import UsageError
from kjump.formats import cmdline
from kjump.kexec import loader, syscalls
from kjump.kexec.plan import ARCH_X86_64, ON_CRASH
from kjump.ranges import Range


@click.command()
@click.argument("kernel", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--initrd", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Initial RAM disk.")
@click.option("--command-line", "--append", default="", help="Command line of the second kernel.")
@click.option("--reuse-cmdline", is_flag=True, help="Begin the command line with the running kernel's machine options.")
@click.option("--preserve-context", is_flag=True, help="Come back here when the second kernel jumps back.")
@WINDOW_PLACE
@WINDOW_SIZE
@click.option("--on-crash", is_flag=True, help="To be started when this kernel panics, in what crashkernel= set aside.")
@click.option("--dry-run", is_flag=True, help="Show the segments, load nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def load_command(
    kernel: Path,
    initrd: Path | None,
    command_line: str,
    reuse_cmdline: bool,
    preserve_context: bool,
    window: Range | None,
    window_size: int,
    on_crash: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Load a kernel for `kjump exec`, or for a panic.

    KERNEL is a bzImage. With --on-crash a panic of the running kernel starts it; else `kjump exec` does.
    """
    from kjump.host import procfs
    from kjump.kexec import second_kernel
    from kjump.peers.lifecycle import refuse_if_peers_are_resident

    check_second_kernel(kernel, initrd)
    if on_crash and (preserve_context or window or dry_run or as_json):
        raise UsageError(
            "where a crash kernel goes is for the running one to say: use --on-crash without a window, "
            "--preserve-context, --dry-run and --json"
        )
    need_root()
    reused = second_kernel.machine_options(procfs.command_line()) if reuse_cmdline else ""
    command_line = cmdline.join([reused, command_line])
    if on_crash:
        syscalls.load_on_crash(kernel, initrd, command_line)
        return
    plan = second_kernel.plan_kernel(
        kernel,
        initrd,
        command_line,
        window=window,
        window_size=window_size,
        preserve=preserve_context,
    )
    if as_json:
        print_json(plan_as_json(plan))
    elif dry_run:
        show_plan(plan)
    if not dry_run:
        refuse_if_peers_are_resident()
        loader.current().load(plan)


@click.command()
def exec_command() -> None:
    """Jump to what is loaded.

    Returns when the other side comes back, if it was loaded with --preserve-context.
    """

    if not loader.current().is_loaded():
        raise UsageError("nothing is loaded: use `kjump load` first")
    need_root()
    os.sync()
    loader.current().jump()


def _peers() -> list[dict[str, object]] | None:
    """Return the resident peers, each as a JSON object with the state in its gate.

    None when there may be some, but this user cannot read their record.
    """
    from kjump.peers import FOLDER
    from kjump.peers.lifecycle import Peers

    if not FOLDER.exists():
        return []
    if os.geteuid() != 0:
        return None
    with Peers() as peers:
        return peers.listing()


@click.command()
@click.option("--on-crash", is_flag=True, help="Drop the crash kernel instead.")
def unload_command(on_crash: bool) -> None:
    """Drop what is loaded."""
    need_root()
    loader.current().unload(ARCH_X86_64 | (ON_CRASH if on_crash else 0))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status_command(as_json: bool) -> None:
    """Say what is loaded, and which peers are resident.

    Exits with 0 when something is loaded for a jump, 1 when not.
    """
    peers = _peers()
    slots = loader.current()
    state = {"loaded": slots.is_loaded(), "crash_loaded": slots.is_loaded(on_crash=True), "peers": peers}
    if as_json:
        print_json(state)
    else:
        click.echo(f"loaded for a jump: {'yes' if state['loaded'] else 'no'}")
        click.echo(f"loaded for a crash: {'yes' if state['crash_loaded'] else 'no'}")
        if peers is None:
            click.echo("resident peers: only root can see them")
        for peer in peers or ():
            click.echo("peer {name}: {state}, Linux {release}, window {window}, {switches} switches".format(**peer))
    raise SystemExit(0 if state["loaded"] else 1)
