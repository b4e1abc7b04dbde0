"""The kernel's command line, as far as this tree reads it."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from harness import clean_errors

LONGEST = 512
INPUTS = [b'root=/dev/sda1 quiet "kjump.x=a b" console=ttyS0 -- single', b"\xa0a=\"b c ' \\ #", b""]
READER: Any = (
    importlib.import_module("kjump.formats.cmdline") if importlib.util.find_spec("kjump.formats.cmdline") else None
)


def one_input(data: bytes) -> None:
    """Read `data` as a command line; every word that is read is in it."""
    if READER is None:
        return
    text = data.decode("utf-8", "surrogateescape")
    with clean_errors():
        line = READER.parse(text)
        for parameter in (*line.parameters, *line.init_arguments):
            assert parameter.written in text
