"""Builds the initramfs: this Python, the modules that the roles import, kjump, and the shared libraries.

What goes in is found by importing the roles in a fresh interpreter and asking it which modules it holds, so
nothing is there that no role imports. Modules are compiled; their sources stay out.
"""

from __future__ import annotations

import importlib.util
import json
import marshal
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kjump import _core, precompiled
from kjump.errors import HostError
from kjump.formats import bzimage, cpio
from kjump.gates import door_binary, gate_binary
from kjump.initramfs.contents import FILE_LIST, KERNEL, tool_entries

ENTRY_MODULE = "kjump.init.main"
_EXTRA_MODULES = (
    *("kjump.precompiled", "kjump.init.peer_command", "kjump.init.jobs.look"),
    *("encodings.ascii", "encodings.latin_1", "encodings.utf_8", "encodings.utf_16_le", "traceback", "os", "hashlib"),
)
"""What is imported only when it is needed, so that the roles alone do not bring it."""
_DUMP_MODULES = ("kjump.dump.create",)
"""What `kjump peer dump` needs beside that."""
# hashlib prefers OpenSSL, five megabytes for one digest; without it it falls back to its own code.
_LEFT_OUT = ("_hashlib", "_ssl", "_bz2", "_lzma", "_decimal")

_LIST_MODULES = """
import importlib, json, sys
entry, extra, left_out = json.loads(sys.argv[1])
for name in left_out:
    sys.modules[name] = None
for name in [entry, *extra]:
    importlib.import_module(name)
for name in sys.modules[entry].ROLES.values():
    importlib.import_module(name)
found = {}
for name, module in sys.modules.items():
    spec = getattr(module, "__spec__", None)
    origin = getattr(module, "__file__", None) or (spec and spec.origin)
    if name != "__main__" and module is not None and origin and origin not in ("built-in", "frozen"):
        found[name] = [origin, bool(getattr(module, "__path__", None))]
print(json.dumps(found))
"""

_INIT = """#!/usr/bin/python3 -IS
from kjump import precompiled

precompiled.start()
from kjump.init.main import main

main()
"""

_COMMAND = """#!/usr/bin/python3 -IS
from kjump.init.peer_command import main

main()
"""

_SHARED = "lib/x86_64-linux-gnu"


@dataclass(frozen=True)
class Module:
    """A Python module: its dotted `name`, the file it was loaded from, and whether it is a package."""

    name: str
    origin: Path
    is_package: bool

    @property
    def is_native(self) -> bool:
        """Whether it is a shared library."""
        return ".so" in self.origin.suffixes


def modules(python: str = sys.executable, more: Sequence[str] = ()) -> list[Module]:
    """Return the modules that the roles and `more` need, by name; HostError when they cannot be imported."""
    argument = json.dumps([ENTRY_MODULE, [*_EXTRA_MODULES, *more], _LEFT_OUT])
    output = _run([python, "-I", "-c", _LIST_MODULES, argument])
    found = json.loads(output)
    names = [name for name in sorted(found) if _wanted(name)]
    return [Module(name, Path(found[name][0]), found[name][1]) for name in names]


def _wanted(name: str) -> bool:
    # An editable or namespaced installation leaves finders of its own among the modules.
    return not name.startswith(("__editable__", "_distutils_hack", "sitecustomize", "_virtualenv", "site"))


def shared_libraries(files: list[Path]) -> list[Path]:
    """Return the shared libraries, dynamic loader included, that `files` need, as the system's ldd finds them."""
    found: set[Path] = set()
    for file in files:
        for match in re.finditer(r"(/\S+) \(0x", _run(["ldd", str(file)])):
            found.add(Path(match[1]))
    return sorted(found)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostError(f"`{' '.join(command[:3])} ...` failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def _library() -> str:
    return f"usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}"


def _module_entry(module: Module) -> cpio.Entry:
    library = _library()
    path = module.name.replace(".", "/")
    if module.is_native:
        return cpio.regular(f"{library}/{path}.so", _stripped(module.origin), 0o755)
    name = f"{path}/__init__.pyc" if module.is_package else f"{path}.pyc"
    return cpio.regular(f"{library}/{name}", _compiled(module.origin))


def _compiled(source: Path) -> bytes:
    """Return a .pyc that is never checked against a source, without docstrings (PEP 552)."""
    code = compile(source.read_bytes(), source.name, "exec", dont_inherit=True, optimize=2)
    return importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8) + marshal.dumps(code)


def _stripped(file: Path) -> bytes:
    """Return a shared library or program without symbols, as it lies when it is stripped already."""
    done = subprocess.run(["strip", "-o", "/dev/stdout", str(file)], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 and done.stdout else file.read_bytes()


def entries(kernel: Path | None, *, tools: Sequence[Path] = (), with_dump: bool = False) -> list[cpio.Entry]:
    """Return all that goes into the initramfs; `kernel` is the bzImage that a boot role starts as C.

    `tools` are static programs for hooks (see `tool_entries`); `with_dump` lets `kjump peer dump` work in it.
    """
    python = Path(sys.executable).resolve()
    found = modules(more=_DUMP_MODULES if with_dump else ())
    native = [m.origin for m in found if m.is_native]
    libraries = shared_libraries([python, *native])
    made = [
        cpio.regular("init", _INIT.encode(), 0o755),
        cpio.regular("usr/bin/kjump", _COMMAND.encode(), 0o755),
        cpio.regular("usr/bin/python3", _stripped(python), 0o755),
        *(_module_entry(m) for m in found),
        *(_library_entry(path) for path in libraries),
        *_package_data(),
        *(cpio.directory(name) for name in ("proc", "sys", "dev", "newroot", "tmp")),
        # Python looks for this folder to know where it is installed, and complains when it is not there.
        cpio.directory(f"{_library()}/lib-dynload"),
        cpio.char_device("dev/console", 5, 1),
        *tool_entries(tools),
    ]
    names = "".join(f"{e.name}\n" for e in made if e.name != "dev/console")
    made.append(cpio.regular(str(FILE_LIST).lstrip("/"), names.encode()))
    if kernel is not None:
        data = kernel.read_bytes()
        bzimage.parse_file(data, kernel)  # else nobody would find out before the machine is switched on again
        made.append(cpio.regular(str(KERNEL).lstrip("/"), data))
    return made


def _library_entry(path: Path) -> cpio.Entry:
    # The loader is named by absolute path in every program; the rest is found by name.
    name = str(path).lstrip("/") if path.name.startswith("ld-") else f"{_SHARED}/{path.name}"
    return cpio.regular(name, _stripped(path), 0o755)


def overlay(names: Sequence[str]) -> bytes:
    """Return a cpio archive with what the modules `names` need beyond `build`'s, to be loaded behind it."""
    there = {m.name for m in modules()}
    return cpio.write([_module_entry(m) for m in modules(more=names) if m.name not in there])


def _package_data() -> list[cpio.Entry]:
    folder = f"{_library()}/kjump"
    return [
        cpio.regular(f"{folder}/{precompiled.FILE.name}", precompiled.FILE.read_bytes()),
        cpio.regular(f"{folder}/gates/gate64.bin", gate_binary()),
        cpio.regular(f"{folder}/gates/door64.bin", door_binary()),
    ]


def build(kernel: Path | None, *, level: int = 0, tools: Sequence[Path] = (), with_dump: bool = False) -> bytes:
    """Return the initramfs as one cpio archive; see `entries`.

    `level` is zstd's; at 0 it is not compressed, so that no kernel need unpack it. HostError when a tool is missing or
    a role cannot be imported.
    """
    archive = cpio.write(entries(kernel, tools=tools, with_dump=with_dump))
    return _core.compress_bytes(archive, level) if level else archive
