"""lab: kernels, machines and demonstrations."""

from __future__ import annotations

from pathlib import Path

import click

from kjump.cli.demo import build_kernel, demo, kernel_option
from kjump.cli.options import SIZE, human
from kjump.lab import requirements


@click.group()
def lab_command() -> None:
    """Kernels from source, QEMU machines, demonstrations."""


lab_command.add_command(demo)


@lab_command.group()
def kernel() -> None:
    """Kernels to try things on."""


@kernel.command("build")
@click.option("--version", default="6.12", show_default=True, help="Of Debian's linux-source-VERSION.")
@click.option(
    "--arch", default="x86_64", show_default=True, type=click.Choice(["x86_64", "i386"]), help="Of the kernel."
)
@click.option("--debug-info", is_flag=True, help="Keep a vmlinux with DWARF, for crash and drgn.")
def kernel_build(version: str, arch: str, debug_info: bool) -> None:
    """Build a kernel, or say where the cached one is."""
    built = build_kernel(version, arch=arch, debug_info=debug_info)
    click.echo(f"{built.image} (Linux {built.release}, {human(built.image.stat().st_size)})")


@lab_command.command("vmcore")
@click.option("--memory", type=SIZE, default="512M", show_default=True, help="RAM of the machine.")
@click.option("--fill", type=SIZE, default="128M", show_default=True, help="How much of it to use.")
@kernel_option(why="Of Debian's linux-source-VERSION.")
@click.option("--cpu", default="max", show_default=True, help="QEMU CPU model; max,la57=off has 4 levels of paging.")
@click.option("--options", default="", help="More options for the kernel.")
@click.option("--debug-info", is_flag=True, help="Take a kernel with DWARF, for crash and drgn.")
@click.option("--crash", is_flag=True, help="Let the kernel panic first.")
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
def vmcore_command(
    memory: int, fill: int, version: str, cpu: str, options: str, debug_info: bool, crash: bool, out: Path
) -> None:
    """Boot a kernel, fill its memory, and write its ELF vmcore to OUT."""
    requirements.check()
    from kjump.lab.machine import vmcore

    built = build_kernel(version, debug_info=debug_info)
    vmcore.make(built, out, memory=memory, fill=fill, cpu=cpu, options=options, crash=crash)
    click.echo(f"{out} (Linux {built.release}, {human(out.stat().st_size)})")
