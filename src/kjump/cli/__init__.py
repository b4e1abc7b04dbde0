"""The command line. Each verb's module is imported only when the verb is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from kjump.cli.examples import show_examples
from kjump.errors import KjumpError

SECTIONS: dict[str, dict[str, str]] = {
    "Hibernation": {
        "doctor": "kjump.cli.doctor",
        "hibernate": "kjump.cli.hibernate",
        "resume": "kjump.cli.hibernate",
        "standby": "kjump.cli.peers",
        "target": "kjump.cli.target",
        "initramfs": "kjump.cli.initramfs",
    },
    "Snapshots": {
        "snapshot": "kjump.cli.snapshot",
        "rollback": "kjump.cli.snapshot",
        "peer": "kjump.cli.peer",
    },
    "Several kernels": {
        "boot-peer": "kjump.cli.peers",
        "switch": "kjump.cli.peers",
        "restart": "kjump.cli.peers",
        "drop": "kjump.cli.peers",
        "inspect": "kjump.cli.inspect",
    },
    "Programs": {
        "call": "kjump.cli.call",
        "bios": "kjump.cli.bios",
    },
    "Loading": {
        "load": "kjump.cli.load",
        "exec": "kjump.cli.load",
        "unload": "kjump.cli.load",
        "status": "kjump.cli.load",
    },
    "Dumps": {"dump": "kjump.cli.dump"},
    "Laboratory": {"lab": "kjump.cli.lab"},
}
"""The verbs by their heading in `kjump --help`, each with the module of its command `VERB_command`."""

_VERBS = {verb: module for verbs in SECTIONS.values() for verb, module in verbs.items()}


class _Verbs(click.Group):
    """Finds a verb's command in its module: `VERB_command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        command = getattr(importlib.import_module(_VERBS[cmd_name]), f"{cmd_name.replace('-', '_')}_command")
        assert isinstance(command, click.Command)
        show_examples(command, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        longest = max(map(len, _VERBS))
        for heading, verbs in SECTIONS.items():
            found = ((verb, self.get_command(ctx, verb)) for verb in verbs)
            room = formatter.width - longest - 4
            with formatter.section(heading):
                formatter.write_dl([(v.ljust(longest), c.get_short_help_str(room)) for v, c in found if c])


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kjump", prog_name="kjump")
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
