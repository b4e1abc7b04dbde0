"""Lets the build import kjump before its native modules are there."""

import sys
import types


class _Native(types.ModuleType):
    """Stands in for a native module: whatever is taken from it on import."""

    def __getattr__(self, name: str) -> type[Exception]:
        if name.startswith("__"):
            raise AttributeError(name)
        return Exception


def import_from(source: str) -> None:
    """Have `kjump` imported from the folder `source`, which is left as it is."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, source)
    for name in ("kjump._core", "kjump._dump"):
        sys.modules[name] = _Native(name)
