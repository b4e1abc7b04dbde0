"""Imports go downwards only, and nowhere in a circle, as docs/architecture.md says."""

import ast
from pathlib import Path

import pytest

import kjump

ROOT = Path(kjump.__file__).parent
GROUND = {"errors", "ranges", "memory", "libc", "layout", "precompiled", "__init__"}
MAY_IMPORT = {
    "ranges": set(),
    "libc": set(),
    "layout": set(),
    "precompiled": set(),
    "errors": set(),
    "memory": {"errors", "ranges"},
    "formats": GROUND,
    "gates": GROUND,
    "kexec": GROUND | {"formats", "gates", "_core"},
    "dump": GROUND | {"formats", "_core", "_dump"},
    "initramfs": GROUND | {"formats", "gates", "_core"},
    "hibernate": GROUND | {"formats", "gates", "_core", "kexec", "dump", "initramfs"},
    "roles": GROUND | {"formats", "gates", "_core", "kexec", "dump", "initramfs", "hibernate"},
    "resident": GROUND | {"formats", "gates", "_core", "kexec", "initramfs", "hibernate"},
    "emulator": GROUND | {"kexec", "gates", "formats"},
}


def imports(path: Path) -> set[str]:
    """Return the rooms of ours that the file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "kjump" else [f"kjump.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("kjump.")}
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_what_lies_below(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if room in MAY_IMPORT:
        assert imports(path) - MAY_IMPORT[room] - {room} == set()


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
