"""bios: services of the BIOS, called in real mode from a running system."""

from __future__ import annotations

from collections.abc import Callable

import click

from kjump.call.bios import BUFFER_SEGMENT, Bios, Registers
from kjump.cli.arguments import need_root
from kjump.cli.options import NUMBER, human, print_json
from kjump.errors import UsageError

_NAMES = ("ax", "bx", "cx", "dx", "si", "di", "bp")
_BUFFER = "buffer"


@click.group()
def bios_command() -> None:
    """Call services of the BIOS (not under UEFI)."""


def _bios() -> Bios:
    from kjump.call.host import HostMachine

    need_root()
    return Bios(HostMachine())


_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@bios_command.command()
@_JSON
def e820(as_json: bool) -> None:
    """Print the memory map, INT 15h E820h."""
    with _bios() as bios:
        entries = bios.memory_map()
    if as_json:
        print_json([{"start": e.range.start, "end": e.range.end, "type": e.type_name} for e in entries])
        return
    for entry in entries:
        click.echo(str(entry))


@bios_command.command("vbe-info")
@_JSON
def vbe_info(as_json: bool) -> None:
    """Print what the graphics BIOS says of itself, INT 10h 4F00h."""
    with _bios() as bios:
        info = bios.vbe_info()
    if as_json:
        print_json(vars(info))
        return
    click.echo(f"{info.signature} {info.version}, {info.oem}, {human(info.memory)} of memory")
    click.echo(f"modes: {' '.join(f'{m:#x}' for m in info.modes)}")


@bios_command.command()
@click.option("--drive", type=NUMBER, default=0x80, show_default="0x80", help="BIOS number of the drive.")
@_JSON
def edd(drive: int, as_json: bool) -> None:
    """Print what the BIOS says of a disk, INT 13h 41h and 48h."""
    with _bios() as bios:
        found = bios.drive(drive)
    if as_json:
        print_json(vars(found))
        return
    size = human(found.sectors * found.sector_size)
    click.echo(f"drive {found.number:#x}: {found.sectors} sectors of {found.sector_size} bytes ({size})")
    click.echo(f"EDD {found.edd_version:#x}, extensions {found.extensions:#x}")
    click.echo(f"geometry {found.cylinders}/{found.heads}/{found.sectors_per_track}")


def _register_options(command: Callable[..., None]) -> Callable[..., None]:
    for name in reversed(_NAMES):
        command = click.option(f"--{name}", f"e{name}", type=NUMBER, default=0, help=f"(E){name.upper()}.")(command)
    for pair in ("es-di", "ds-si"):
        text = "Segment and offset, as 0x1234:0x10, or `buffer`."
        command = click.option(f"--{pair}", metavar="FAR", help=text)(command)
    return command


@bios_command.command("int")
@click.argument("number", type=NUMBER)
@_register_options
@click.option("--data", default="", help="What the buffer begins with, as hexadecimal digits.")
@_JSON
def interrupt(number: int, data: str, as_json: bool, es_di: str | None, ds_si: str | None, **values: int) -> None:
    """Call interrupt NUMBER with these registers.

    Prints the registers that it leaves, and the buffer if it was used.
    """
    if not 0 <= number <= 255:
        raise UsageError(f"interrupt {number:#x} is not between 0 and 0xff")
    for text, segment, offset in ((es_di, "es", "edi"), (ds_si, "ds", "esi")):
        if text is not None:
            values[segment], values[offset] = _far(text)
    try:
        content = bytes.fromhex(data)
    except ValueError:
        raise UsageError(f"{data!r} is not hexadecimal digits") from None
    with _bios() as bios:
        registers, buffer = bios.interrupt(number, Registers(**values), content)
    if as_json:
        print_json({**vars(registers), "buffer": buffer.rstrip(b"\0").hex()})
        return
    for name, value in vars(registers).items():
        click.echo(f"{name} {value:#010x}")
    if any(buffer):
        click.echo(f"buffer {buffer.rstrip(bytes(1)).hex(' ')}")


def _far(text: str) -> tuple[int, int]:
    """Return (segment, offset)."""
    if text == _BUFFER:
        return BUFFER_SEGMENT, 0
    segment, colon, offset = text.partition(":")
    if not colon:
        raise UsageError(f"{text!r} is not SEGMENT:OFFSET")
    try:
        return int(segment, 0), int(offset, 0)
    except ValueError:
        raise UsageError(f"{text!r} is not SEGMENT:OFFSET") from None
