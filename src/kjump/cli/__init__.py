"""The command line. Verbs are in modules of their own, imported only when they are called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from kjump import __version__
from kjump.errors import KjumpError

_VERBS = {
    "bios": "kjump.cli.bios",
    "boot-peer": "kjump.cli.peers",
    "call": "kjump.cli.call",
    "doctor": "kjump.cli.doctor",
    "drop": "kjump.cli.peers",
    "dump": "kjump.cli.dump",
    "exec": "kjump.cli.load",
    "hibernate": "kjump.cli.hibernate",
    "initramfs": "kjump.cli.initramfs",
    "inspect": "kjump.cli.inspect",
    "lab": "kjump.cli.lab",
    "load": "kjump.cli.load",
    "restart": "kjump.cli.peers",
    "resume": "kjump.cli.hibernate",
    "peer": "kjump.cli.peer",
    "rollback": "kjump.cli.snapshot",
    "snapshot": "kjump.cli.snapshot",
    "standby": "kjump.cli.peers",
    "status": "kjump.cli.load",
    "switch": "kjump.cli.peers",
    "target": "kjump.cli.target",
    "unload": "kjump.cli.load",
}


class _Verbs(click.Group):
    """Finds a verb's command in its module: `VERB_command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        command = getattr(importlib.import_module(_VERBS[cmd_name]), f"{cmd_name.replace('-', '_')}_command")
        assert isinstance(command, click.Command)
        return command


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kjump")
def kjump() -> None:
    """Leave a running Linux, run something else on the bare machine, and come back."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, 1 (it failed), 2 (wrong use) or 130 (interrupted)."""
    try:
        status = kjump.main(args=arguments, prog_name="kjump", standalone_mode=False)
    except KjumpError as error:
        click.echo(f"kjump: {error}", err=True)
        sys.exit(error.exit_status)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("kjump: interrupted", err=True)
        sys.exit(130)
    except OSError as error:
        click.echo(f"kjump: {error.filename or 'the system'}: {error.strerror}", err=True)
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)
