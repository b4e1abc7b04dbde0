"""inspect: what lies where."""

from __future__ import annotations

from pathlib import Path

import click

from kjump.cli.arguments import need_root
from kjump.errors import UsageError


@click.command()
@click.option("--plan", is_flag=True, help="Draw windows and shadows of the resident peers in physical memory.")
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), help="Write the picture to a file, as SVG.")
@click.option("--width", type=click.IntRange(16, 400), default=96, show_default=True, help="Columns of the picture.")
def inspect_command(plan: bool, svg: Path | None, width: int) -> None:
    """Show what lies where in this machine's physical memory."""
    from kjump.host.new_files import write_whole
    from kjump.peers import memory_map
    from kjump.peers.lifecycle import Peers

    if not plan:
        raise UsageError("say what to inspect: --plan")
    need_root()
    with Peers() as peers:
        survey = peers.survey()
    if svg is not None:
        write_whole(svg, memory_map.as_svg(survey).encode())
    else:
        click.echo(memory_map.for_terminal(survey, width))
