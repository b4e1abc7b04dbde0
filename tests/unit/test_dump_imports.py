"""The modules of `kjump.dump` import each other in one direction, and at their top."""

from __future__ import annotations

import ast
from pathlib import Path

import kjump.dump

FOLDER = Path(kjump.dump.__file__).parent
LATE = {("summary", "pipeline")}
"""Imports inside a function that have a reason: `_dump` is not there in every second kernel."""


def imports(tree: ast.AST) -> set[str]:
    """Return the modules of the folder that are imported anywhere in `tree`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "kjump.dump":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kjump.dump."):
            found.add(str(node.module).split(".")[2])
    return found


TREES = {path.stem: ast.parse(path.read_text()) for path in FOLDER.glob("*.py")}


def test_there_is_no_circle() -> None:
    left = {name: imports(tree) for name, tree in TREES.items()}
    while left:
        free = [name for name, needs in left.items() if not needs & left.keys()]
        assert free, f"these import each other in a circle: {sorted(left)}"
        for name in free:
            del left[name]


def test_imports_stand_at_the_top() -> None:
    late = {
        (name, wanted)
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for wanted in imports(node)
    }
    assert late == LATE
