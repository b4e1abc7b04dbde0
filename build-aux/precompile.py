"""Compile what dataclasses write for the classes of kjump: `precompile.py SOURCE OUTPUT` (see kjump.precompiled).

Run by the build, before there are native modules or the libraries that some rooms need: the first are stood in for, the
others left out.
"""

import importlib
import pkgutil
import sys
import types
from pathlib import Path

_LEFT_OUT = ("kjump.cli", "kjump.lab", "kjump.emulator", "kjump.__main__")


class _Native(types.ModuleType):
    """Stands in for a native module: whatever is taken from it on import."""

    def __getattr__(self, name: str) -> type[Exception]:
        if name.startswith("__"):
            raise AttributeError(name)
        return Exception


def main() -> None:
    """Import all that can be imported, and write what was compiled meanwhile."""
    source, output = sys.argv[1:]
    sys.dont_write_bytecode = True
    sys.path.insert(0, source)
    from kjump import precompiled

    texts: list[str] = []
    precompiled.record(texts)
    for name in ("kjump._core", "kjump._dump"):
        sys.modules[name] = _Native(name)
    for module in pkgutil.walk_packages([str(Path(source, "kjump"))], "kjump."):
        if not module.name.startswith(_LEFT_OUT):
            importlib.import_module(module.name)
    Path(output).write_bytes(precompiled.compiled(texts))


main()
