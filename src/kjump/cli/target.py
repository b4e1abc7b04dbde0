"""target: files that take images, and what a target holds."""

from __future__ import annotations

from typing import Any

import click

from kjump.cli.arguments import need_root, open_saved, target_named
from kjump.cli.options import OFFSET, SIZE, human, print_json
from kjump.errors import FormatError
from kjump.formats.extentmap import BLOCK
from kjump.formats.superblock import State, Superblock
from kjump.target import identify
from kjump.target.device import Target, why_not_resumable
from kjump.target.file import create


@click.group()
def target_command() -> None:
    """Make a target file, or see what a target holds."""


@target_command.command("create")
@click.argument("file", type=click.Path(dir_okay=False))
@click.argument("size", type=SIZE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def create_command(file: str, size: int, as_json: bool) -> None:
    """Make FILE of SIZE bytes (2G, ...) on a mounted ext4.

    Prints the kernel options that let a boot find it.
    """
    need_root()
    with create(file, size) as target:
        described = _describe(target)
    if as_json:
        print_json(described)
        return
    click.echo(f"{file}: {human(target.capacity)} in {described['extents']} extents on {described['device']}")
    click.echo("Put this on the kernel command line, so that a boot finds an image there:")
    click.echo(f"    {described['options']}")


@target_command.command("show")
@click.argument("path", metavar="FILE|DEVICE", callback=target_named)
@OFFSET
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show_command(path: str, offset: int, as_json: bool) -> None:
    """Say what the target FILE or DEVICE holds."""
    with open_saved(path, offset, writable=False) as target:
        described = _describe(target)
    if as_json:
        print_json(described)
        return
    where = f" in {described['extents']} extents on {described['device']}" if described["extents"] else ""
    click.echo(f"{path}: {human(described['capacity'])}{where}, {described['state']}")
    if described["reason"]:
        click.echo(f"{described['reason']}")
    if described["image_bytes"]:
        click.echo(f"image of {human(described['image_bytes'])}, generation {described['generation']}")
    if described["options"]:
        click.echo(f"kernel options: {described['options']}")


def _describe(target: Target) -> dict[str, Any]:
    try:
        superblock = target.read_superblock()
        state, reason = superblock.state.name.lower(), why_not_resumable(superblock) or ""
    except FormatError as error:
        superblock, state, reason = Superblock(), "none", str(error)
    extents = target.place.extents
    return {
        "path": target.path,
        "device": target.place.device,
        "capacity": target.capacity,
        "extents": len(extents),
        "first_block": extents[0].start // BLOCK if extents else 0,
        "state": state,
        "reason": reason,
        "resumable": superblock.state is State.COMPLETE,
        "generation": superblock.generation,
        "image_bytes": superblock.image_length,
        "options": " ".join(identify.boot_options(target.place)),
    }
