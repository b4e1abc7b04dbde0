"""The kernel's command line, as formats/cmdline.py reads it."""

from __future__ import annotations

from harness import clean_errors

from kjump.formats import cmdline

LONGEST = 512
INPUTS = [b'root=/dev/sda1 quiet "kjump.x=a b" console=ttyS0 -- single', b"\xa0a=\"b c ' \\ #", b""]


def one_input(data: bytes) -> None:
    """Read `data` as a command line; every word that is read is in it, byte for byte."""
    with clean_errors():
        line = cmdline.parse(data)
        for parameter in (*line.parameters, *line.init_arguments):
            assert cmdline.encode(parameter.written) in data
