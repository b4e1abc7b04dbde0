"""Compile what dataclasses write for the classes of kjump: `precompile.py SOURCE OUTPUT` (see kjump.precompiled).

Run by the build, before there are native modules or the libraries that some rooms need: the first are stood in for, the
others left out.
"""

import importlib
import pkgutil
import sys
from pathlib import Path

from stand_in import import_from

_LEFT_OUT = ("kjump.cli", "kjump.lab", "kjump.emulator", "kjump.__main__")


def main() -> None:
    """Import all that can be imported, and write what was compiled meanwhile."""
    source, output = sys.argv[1:]
    import_from(source)
    from kjump import precompiled

    texts: list[str] = []
    precompiled.record(texts)
    for module in pkgutil.walk_packages([str(Path(source, "kjump"))], "kjump."):
        if not module.name.startswith(_LEFT_OUT):
            importlib.import_module(module.name)
    Path(output).write_bytes(precompiled.compiled(texts))


main()
