"""initramfs build."""

from __future__ import annotations

from pathlib import Path

import click

from kjump.cli.arguments import check_second_kernel
from kjump.cli.options import FILE, PLAIN_LEVEL, human
from kjump.cli.progress import step


@click.group()
def initramfs_command() -> None:
    """The small root that boots, saves and restores."""


@initramfs_command.command()
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path), required=False)
@click.option("--kernel", type=FILE, help="bzImage that restores (default: the running one's in /boot).")
@click.option(
    "--level", type=PLAIN_LEVEL, default=0, show_default=True, help="zstd level: smaller, but slower to boot."
)
@click.option("--tool", "tools", type=FILE, multiple=True, help="Static program for hooks of snapshots: busybox.")
@click.option("--with-dump", is_flag=True, help="So that `kjump peer dump` works in it.")
def build(output: Path | None, kernel: Path | None, level: int, tools: tuple[Path, ...], with_dump: bool) -> None:
    """Build the initramfs of second kernels and of boots that resume.

    OUTPUT is /boot/kjump-initramfs-RELEASE.img by default, with the running kernel's release. At level 0 it is not
    compressed.
    """
    from kjump.hibernate.suspend import default_kernel
    from kjump.host import procfs
    from kjump.host.new_files import write_whole
    from kjump.initramfs.build import build as build_initramfs

    check_second_kernel(kernel)
    path = output or Path(f"/boot/kjump-initramfs-{procfs.release()}.img")
    restoring = kernel or default_kernel()
    step(f"building {path} with {restoring}")
    data = build_initramfs(restoring, level=level, tools=tools, with_dump=with_dump)
    write_whole(path, data)
    click.echo(f"{path}: {human(len(data))}")
