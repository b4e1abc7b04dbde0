"""boot-peer, switch, drop: second kernels that stay."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kjump.cli.arguments import check_second_kernel, need_root
from kjump.cli.options import FILE, KJUMP_INITRD, SECOND_KERNEL, SIZE, WINDOW, WINDOW_SIZE, human, print_json
from kjump.cli.progress import step
from kjump.errors import UsageError
from kjump.hibernate import DEFAULT_WATCHDOG
from kjump.host.new_files import write_whole
from kjump.kexec.window import DEFAULT_SIZE
from kjump.ranges import Range

if TYPE_CHECKING:
    from kjump.peers.lifecycle import Order, Visit

_OUT = click.Path(dir_okay=False, allow_dash=True, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)


def _job_options(command: Any) -> Any:
    """Add the options for the peer's job."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print what happened as one JSON object."),
        click.option("--watchdog", type=click.IntRange(1), default=DEFAULT_WATCHDOG, hidden=True),
        click.option("--time-limit", type=click.FloatRange(0), default=0, help="Seconds the job may take (0: any)."),
        click.option("--receive", type=_OUT, help="Write the message that comes back to a file (-: standard output)."),
        click.option(
            "--send", type=click.Path(allow_dash=True, path_type=Path), help="Send a file (-: standard input)."
        ),
        click.option("--background", is_flag=True, help="Start COMMAND and come back at once."),
        click.option(
            "--job", help="What the peer does: none, shell, ... (default: command if one is given, else none)."
        ),
    ):
        command = option(command)
    return command


def _order(
    command: tuple[str, ...], job: str | None, background: bool, send: Path | None, time_limit: float, watchdog: int
) -> Order:
    from kjump.hibernate.jobs import job_called
    from kjump.peers.lifecycle import Order

    wanted = job_called(job or ("command" if command else "none"), command, background=background)
    message = b"" if send is None else sys.stdin.buffer.read() if str(send) == "-" else send.read_bytes()
    return Order(wanted, message, time_limit, watchdog)


def _tell(visit: Visit, receive: Path | None, as_json: bool) -> None:
    """Print the result of a switch, and write its message to the file `receive`."""
    if receive is not None and str(receive) != "-":
        write_whole(receive, visit.message)
    elif visit.message and not as_json:
        sys.stdout.buffer.write(visit.message)
        sys.stdout.buffer.flush()
    if as_json:
        text = visit.message.decode(errors="replace") if receive is None else ""
        print_json(
            vars(visit) | {"report": visit.report.to_json(), "message": text, "message_bytes": len(visit.message)}
        )
    else:
        click.echo(f"kjump: {visit.peer} came back after {visit.away:.2f} s", err=True)
    visit.raise_unless_done()
    status = visit.report.status
    if status:
        raise SystemExit(status if 0 < status < 256 else 1)


@click.command("boot-peer")
@click.argument("kernel", type=FILE, required=False)
@click.argument("command", nargs=-1)
@click.option("--initrd", type=FILE, multiple=True, help="Initial RAM disk; several are joined (default: kjump's own).")
@click.option("--name", help="What the peer is called from now on (default: second).")
@click.option("--append", default="", help="More for the command line of its kernel.")
@click.option("--window", type=WINDOW, help="Where it lives: START,SIZE (default: found).")
@WINDOW_SIZE
@click.option("--declared", type=FILE, help="TOML file that declares several peers, in place of KERNEL.")
@_job_options
def boot_peer_command(
    kernel: Path | None,
    command: tuple[str, ...],
    initrd: tuple[Path, ...],
    name: str | None,
    append: str,
    window: Range | None,
    window_size: int,
    declared: Path | None,
    job: str | None,
    background: bool,
    send: Path | None,
    receive: Path | None,
    time_limit: float,
    watchdog: int,
    as_json: bool,
) -> None:
    """Start a second kernel that stays, to be switched to.

    KERNEL is a bzImage (default: the running one's). It does its first job (COMMAND, or --job) and comes back; from
    then on `kjump switch` goes to it and returns, as often as wanted.
    """
    check_second_kernel(kernel, *initrd)
    order = _order(command, job, background, send, time_limit, watchdog)
    from kjump.hibernate.suspend import default_initrd, default_kernel
    from kjump.peers.declaration import Declared, read_declaration
    from kjump.peers.lifecycle import Peers

    if declared is not None:
        if kernel or name or window:
            raise UsageError("with --declared the peers' kernels, names and windows are in the file")
        wanted = read_declaration(declared.read_text(), kernel=default_kernel(), initrd=default_initrd())
    else:
        image, initrds = kernel or default_kernel(), initrd or (default_initrd(),)
        wanted = [Declared(name or "second", image, tuple(initrds), append, window, window_size)]
    need_root()
    with Peers() as peers:
        step(f"booting {', '.join(w.name for w in wanted)}")
        visits = peers.boot(wanted, order)
        for visit in visits:
            _tell(visit, receive, as_json)


@click.command("switch")
@click.argument("name", required=False)
@click.argument("command", nargs=-1)
@_job_options
def switch_command(
    name: str | None,
    command: tuple[str, ...],
    job: str | None,
    background: bool,
    send: Path | None,
    receive: Path | None,
    time_limit: float,
    watchdog: int,
    as_json: bool,
) -> None:
    """Go to a resident peer, and return when it comes back.

    NAME need not be given when there is one peer. It does its job meanwhile: COMMAND, if one is given, with what is
    sent as its input. In a peer, this goes back to the first kernel, and returns when that has switched here again.
    """
    from kjump.init.peer_link import is_resident
    from kjump.peers.lifecycle import Peers

    if is_resident():
        _switch_home(send, receive)
        return
    order = _order(command, job, background, send, time_limit, watchdog)
    need_root()
    with Peers() as peers:
        step(f"switching to {name or 'the peer'}")
        visit = peers.switch(name, order)
    _tell(visit, receive, as_json)


def _switch_home(send: Path | None, receive: Path | None) -> None:
    from kjump.init.peer_command import switch_home

    message = b"" if send is None else sys.stdin.buffer.read() if str(send) == "-" else send.read_bytes()
    received = switch_home(message)
    if receive is not None and str(receive) != "-":
        write_whole(receive, received)
    elif received:
        sys.stdout.buffer.write(received)


@click.command("restart")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print what happened as one JSON object.")
def restart_command(name: str | None, as_json: bool) -> None:
    """Boot a resident peer anew, whatever became of it.

    NAME need not be given when there is one peer. It starts from its files; other peers stay as they are.
    """
    from kjump.peers.lifecycle import Peers

    need_root()
    with Peers() as peers:
        step(f"starting {name or 'the peer'} anew")
        visit = peers.restart(name)
    _tell(visit, None, as_json)


@click.command("drop")
def drop_command() -> None:
    """Let all resident peers go; their memory is free again."""
    from kjump.peers.lifecycle import Peers

    need_root()
    with Peers(even_damaged=True) as peers:
        names = peers.drop()
    click.echo(f"dropped {', '.join(names)}" if names else "there was no resident peer")


@click.command("standby")
@click.option("--off", is_flag=True, help="Let the kernel on standby go.")
@SECOND_KERNEL
@KJUMP_INITRD
@click.option("--window-size", type=SIZE, default=DEFAULT_SIZE, show_default="128M", help="Size of its window.")
@click.option("--on-disk", type=_FILE, help="Let it wait in this file, which is written, and not in memory.")
def standby_command(
    off: bool, kernel: Path | None, initrd: Path | None, window_size: int, on_disk: Path | None
) -> None:
    """Keep a second kernel booted for quicker hibernations.

    It is used by the next `kjump hibernate` and `kjump snapshot`, which then need not boot one.
    """
    check_second_kernel(kernel, initrd)
    from kjump.hibernate.suspend import default_initrd, default_kernel
    from kjump.peers import standby

    need_root()
    if off:
        there = standby.stop()
        click.echo("no kernel stands by any more" if there else "no kernel stood by")
        return
    wanted = standby.Wanted(kernel or default_kernel(), initrd or default_initrd(), window_size)
    step(f"booting {wanted.kernel}, to stand by")
    visit = standby.start(wanted, on_disk=on_disk)
    where = f" in {on_disk}, {human(on_disk.stat().st_size)}" if on_disk else ""
    click.echo(f"Linux {visit.report.release} stands by{where}; it booted in {visit.report.boot_seconds:.1f} s")
