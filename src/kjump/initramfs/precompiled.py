"""Code that Python would compile at every start, compiled when the initramfs is built.

The dataclass decorator writes methods as text and compiles that at each import: a good part of the time to start.
The builder notes the texts with `record`, the initramfs begins with `use`. Unknown texts are compiled as ever.
"""

from __future__ import annotations

import dataclasses
import marshal
from pathlib import Path
from typing import Any

FILE = Path("/kjump/dataclasses")


def record(texts: list[str]) -> None:
    """From now on add what the dataclass decorator compiles to `texts`."""

    def noted(text: str, *namespaces: Any) -> None:
        texts.append(text)
        exec(text, *namespaces)

    vars(dataclasses)["exec"] = noted


def compiled(texts: list[str]) -> bytes:
    """Return the contents of FILE for `texts`; good for this version of Python only."""
    return marshal.dumps({text: marshal.dumps(compile(text, "<dataclass>", "exec", optimize=2)) for text in texts})


def use(file: Path = FILE) -> None:
    """From now on let the dataclass decorator find its methods in `file`."""
    known = marshal.loads(file.read_bytes())

    def found(text: str, *namespaces: Any) -> None:
        code = known.get(text)
        exec(text if code is None else marshal.loads(code), *namespaces)

    vars(dataclasses)["exec"] = found
