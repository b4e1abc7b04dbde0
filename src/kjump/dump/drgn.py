"""Opens any dump that kjump reads as a program of drgn, without a conversion.

    python3 -m kjump.dump.drgn VMLINUX IMAGE            drgn's interactive prompt
    python3 -m kjump.dump.drgn VMLINUX IMAGE SCRIPT     runs a script, with `prog` defined

Or from Python: `prog = kjump.dump.drgn.program("image", "vmlinux")`.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

from kjump.dump.opening import open_source
from kjump.dump.source import Source
from kjump.errors import FormatError, HostError


def program(dump: str | Source, *debug_info: str) -> Any:
    """Return a `drgn.Program` for the kernel in `dump`, with debugging symbols from the files `debug_info`.

    The dump stays open as long as the program is used. HostError when drgn is not installed, FormatError when the
    dump is none, or has no VMCOREINFO.
    """
    try:
        import drgn
    except ImportError:
        raise HostError("drgn is not installed: pip install drgn") from None
    source = open_source(dump) if isinstance(dump, str) else dump
    architecture = drgn.Architecture.X86_64 if source.word == 8 else drgn.Architecture.I386
    flags = drgn.PlatformFlags.IS_LITTLE_ENDIAN
    if source.word == 8:
        flags |= drgn.PlatformFlags.IS_64_BIT
    prog = drgn.Program(drgn.Platform(architecture, flags))

    def read(address: int, count: int, _offset: int, _physical: bool) -> bytes:
        try:
            return source.read(address, count)
        except FormatError as error:
            raise drgn.FaultError(str(error), address) from None

    for item in source.ranges:
        prog.add_memory_segment(item.start, item.size, read, True)
    prog.set_linux_kernel_custom(source.info.text, source.live)
    if debug_info:
        prog.load_debug_info(debug_info)
    return prog


def main(arguments: list[str]) -> None:
    """Open VMLINUX and IMAGE; run SCRIPT, or drgn's prompt."""
    if len(arguments) < 2:
        sys.exit("usage: python3 -m kjump.dump.drgn VMLINUX IMAGE [SCRIPT [ARGUMENTS]]")
    prog = program(arguments[1], arguments[0])
    if len(arguments) > 2:
        sys.argv = arguments[2:]
        runpy.run_path(arguments[2], init_globals={"prog": prog}, run_name="__main__")
    else:
        from drgn.cli import run_interactive

        run_interactive(prog)


if __name__ == "__main__":
    main(sys.argv[1:])
