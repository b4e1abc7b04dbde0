"""doctor: what a hibernation needs, and what to do about what is missing."""

from __future__ import annotations

import click

from kjump.cli.arguments import check_target, target_named
from kjump.cli.options import ACCEPT_UNSEEN, SIZE, print_json
from kjump.hibernate import preflight
from kjump.kexec.window import DEFAULT_SIZE


@click.command()
@click.option("--to", "target", metavar="TARGET", callback=target_named, help="Also check this target device.")
@click.option("--window-size", type=SIZE, default=DEFAULT_SIZE, show_default="128M", help="Size of the window.")
@ACCEPT_UNSEEN
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def doctor_command(target: str | None, window_size: int, accept_unseen: tuple[str, ...], as_json: bool) -> None:
    """Check whether this machine can hibernate.

    Exits with 1 when something is missing, and says what to do about it.
    """
    if target is not None:
        check_target(target)
    checks = preflight.checks(target=target, window_size=window_size, accept_unseen=accept_unseen)
    if as_json:
        print_json({"ok": all(c.ok for c in checks), "checks": [vars(c) for c in checks]})
    else:
        for check in checks:
            mark = "ok  " if check.ok else "FAIL"
            click.echo(f"{mark} {check.name}: {check.detail}")
            if not check.ok:
                click.echo(f"     {check.remedy}")
    raise SystemExit(0 if all(c.ok for c in checks) else 1)
