"""Imports go downwards only, and nowhere in a circle, as docs/architecture.md says."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import kjump

ROOT = Path(kjump.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
NATIVE = {"_core", "_dump"}
GROUND = {"errors", "ranges", "memory", "layout", "precompiled", "__init__"}
LOW = GROUND | {"formats", "gates", "host", "_core"}
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "ranges": set(),
    "layout": set(),
    "precompiled": set(),
    "errors": set(),
    "memory": {"errors", "ranges"},
    "formats": GROUND,
    "gates": GROUND,
    "host": GROUND | {"formats"},
    "initramfs": GROUND | {"formats", "gates", "_core"},
    "dump": GROUND | {"formats", "_core", "_dump"},
    "kexec": LOW | {"initramfs"},
    "call": LOW | {"kexec"},
    "target": GROUND | {"formats", "host"},
    "image": LOW | {"kexec", "dump", "target"},
    "hibernate": LOW | {"initramfs", "kexec", "dump", "target", "image"},
    "peers": LOW | {"initramfs", "kexec", "target", "image", "hibernate"},
    "init": LOW | {"initramfs", "kexec", "dump", "target", "image", "hibernate"},
    "emulator": LOW | {"kexec", "call"},
}
ABOVE = {"lab", "cli", "__main__"}
"""Rooms that may import everything, but not each other's upper one: the lab imports no verb."""


def imported_modules(path: Path, *, at_import: bool = False) -> set[str]:
    """Return the dotted names of our modules that the file imports; those at its top level only with `at_import`."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in tree.body if at_import else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "kjump":
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "kjump"}
    return found


def rooms(path: Path) -> set[str]:
    """Return the rooms that the file imports from, wherever in it."""
    return {name.split(".")[1] for name in imported_modules(path) if "." in name} & (known_rooms() | NATIVE)


def known_rooms() -> set[str]:
    return set(MAY_IMPORT) | ABOVE


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_what_lies_below(path: Path) -> None:
    room = room_of(path)
    if path == ROOT / "__init__.py":
        assert imported_modules(path, at_import=True) == set(), "the interface imports when it is asked"
        return
    assert room in known_rooms(), f"the room {room} is not in the table: say what it may import"
    if room in MAY_IMPORT:
        assert rooms(path) - MAY_IMPORT[room] - {room} == set()
    if room == "lab":
        assert "cli" not in rooms(path)


def test_no_module_imports_in_a_circle() -> None:
    names = {dotted(path): path for path in MODULES}
    graph = {name: {n for n in imported_modules(path) if n in names and n != name} for name, path in names.items()}
    for name in graph:  # a package is the face of its modules: they may name it without being part of a circle
        graph[name] = {other for other in graph[name] if not name.startswith(f"{other}.")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("word", "only"),
    [
        ("_SYS_KEXEC_LOAD", "kexec/syscalls.py"),
        ("import unicorn", "emulator"),
        ("from unicorn", "emulator"),
        ("qemu-system", "lab/machine/qemu.py"),
    ],
)
def test_some_things_are_done_in_one_place(word: str, only: str) -> None:
    users = [str(p.relative_to(ROOT)) for p in MODULES if f"{word}" in p.read_text()]
    assert all(user.startswith(only) for user in users), users


def test_only_the_loader_uses_the_system_calls() -> None:
    """What is not about loading and jumping (a crash kernel from files, a setting) is called by name."""
    users = {str(p.relative_to(ROOT)) for p in MODULES if "kjump.kexec.syscalls" in imported_modules(p)}
    assert users == {"kexec/loader.py", "hibernate/preflight.py", "cli/load.py", "lab/guest/agent.py"}
