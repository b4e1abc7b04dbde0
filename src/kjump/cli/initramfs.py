"""initramfs build."""

from __future__ import annotations

from pathlib import Path

import click

from kjump.cli.options import FILE, human


@click.group()
def initramfs_command() -> None:
    """The small root that boots, saves and restores."""


@initramfs_command.command()
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--kernel", type=FILE, help="bzImage that restores.")
@click.option(
    "--level", type=int, default=0, show_default=True, help="zstd level: smaller, but slower to boot. 0: as it is."
)
@click.option("--tool", "tools", type=FILE, multiple=True, help="Static program for hooks of snapshots: busybox.")
@click.option("--with-dump", is_flag=True, help="So that `kjump peer dump` works in it.")
def build(output: Path, kernel: Path | None, level: int, tools: tuple[Path, ...], with_dump: bool) -> None:
    """Build the initramfs into OUTPUT; the boot role needs --kernel, the second role does not."""
    from kjump.host.new_files import write_whole
    from kjump.initramfs.build import build as build_initramfs

    data = build_initramfs(kernel, level=level, tools=tools, with_dump=with_dump)
    write_whole(output, data)
    click.echo(f"{output}: {human(len(data))}")
