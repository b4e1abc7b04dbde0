"""Builds the initramfs: this Python, the modules that the roles import, kjump, and the shared libraries.

The modules are found by importing the roles in a new interpreter and listing its sys.modules, so no others are
included. Modules are compiled, and their sources left out.
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
"""Modules that the roles import inside functions, and that importing the roles does not find."""
_DUMP_MODULES = ("kjump.dump.create",)
"""Further modules for `kjump peer dump`."""
# hashlib prefers OpenSSL (_hashlib), which takes five megabytes; without it hashlib uses its own code.
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
    # An editable or namespaced installation adds import finders of its own to the modules.
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
    """Return a shared library or program without its symbols."""
    done = subprocess.run(["strip", "-o", "/dev/stdout", str(file)], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 and done.stdout else file.read_bytes()


def entries(kernel: Path | None, *, tools: Sequence[Path] = (), with_dump: bool = False) -> list[cpio.Entry]:
    """Return the entries of the initramfs; `kernel` is the bzImage that the boot role starts as C.

    `tools` are static programs for hooks (see `tool_entries`); `with_dump` includes what `kjump peer dump` needs.
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
        # Python searches for this folder to find its installation, and prints a warning when it is missing.
        cpio.directory(f"{_library()}/lib-dynload"),
        cpio.char_device("dev/console", 5, 1),
        *tool_entries(tools),
    ]
    names = "".join(f"{e.name}\n" for e in made if e.name != "dev/console")
    made.append(cpio.regular(str(FILE_LIST).lstrip("/"), names.encode()))
    if kernel is not None:
        data = kernel.read_bytes()
        bzimage.parse_file(data, kernel)  # else the error would show only at a resume
        made.append(cpio.regular(str(KERNEL).lstrip("/"), data))
    return made


def _library_entry(path: Path) -> cpio.Entry:
    # Programs name the dynamic loader by absolute path; it finds the other libraries by name.
    name = str(path).lstrip("/") if path.name.startswith("ld-") else f"{_SHARED}/{path.name}"
    return cpio.regular(name, _stripped(path), 0o755)


def overlay(names: Sequence[str]) -> bytes:
    """Return a cpio archive, to be appended to `build`'s, with the files that the modules `names` need in addition."""
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

    `level` is the zstd level; 0 does not compress, which saves the kernel the time to decompress. HostError when a tool
    is missing or a role cannot be imported.
    """
    archive = cpio.write(entries(kernel, tools=tools, with_dump=with_dump))
    return _core.compress_bytes(archive, level) if level else archive
