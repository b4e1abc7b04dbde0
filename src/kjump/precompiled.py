"""Code that Python would compile at every start, compiled when kjump is built.

The dataclass decorator writes methods as text and compiles that at each import: a good part of the time that
PID 1 of the initramfs takes to start. The build notes the texts with `record` (build-aux/precompile.py); that PID 1
begins with `use`, and nothing else does: there all code is known, elsewhere the standard library is not ours to change.
Unknown texts are compiled as ever.
"""

from __future__ import annotations

import gc
import marshal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

FILE = Path(__file__).with_name("dataclasses.bin")
_OBJECTS_BETWEEN_COLLECTIONS = 50_000


def record(texts: list[str]) -> None:
    """From now on add what the dataclass decorator compiles to `texts`."""
    import dataclasses

    def noted(text: str, *namespaces: Any) -> None:
        texts.append(text)
        exec(text, *namespaces)

    vars(dataclasses)["exec"] = noted


def compiled(texts: list[str]) -> bytes:
    """Return the contents of FILE for `texts`; good for this version of Python only."""
    return marshal.dumps({text: marshal.dumps(compile(text, "<dataclass>", "exec", optimize=2)) for text in texts})


class _NoInspect(ModuleType):
    """Stands in for `inspect`, of which dataclasses want little; the rest is the real one's.

    That is the signature for a docstring (where docstrings are left out, as in the initramfs, one would be made up for
    each class), and since Python 3.12 the annotations of a class. `inspect` brings a parser along.
    """

    @staticmethod
    def signature(_: object) -> str:
        return ""

    @staticmethod
    def get_annotations(cls: type) -> dict[str, object]:
        return dict(cls.__dict__.get("__annotations__", {}))  # noqa: RUF063

    def __getattr__(self, name: str) -> Any:
        import inspect

        return getattr(inspect, name)


def start() -> None:
    """Do what shortens the start of a program, before it imports anything: `use`, and collect garbage less often.

    Imports make tens of thousands of objects that stay: going through them again and again takes a twentieth of the
    time.
    """
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    use()


def use(file: Path = FILE) -> None:
    """From now on let the dataclass decorator find its methods in `file`; to be called before others import it.

    Nothing changes when there is no such file: then this is a source tree.
    """
    if not file.exists():
        return
    stand_in = "inspect" not in sys.modules
    if stand_in:
        sys.modules["inspect"] = _NoInspect("inspect")
    import dataclasses

    if stand_in:
        del sys.modules["inspect"]
    known = marshal.loads(file.read_bytes())

    def found(text: str, *namespaces: Any) -> None:
        code = known.get(text)
        exec(text if code is None else marshal.loads(code), *namespaces)

    vars(dataclasses)["exec"] = found
