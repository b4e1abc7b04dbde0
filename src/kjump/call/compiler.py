"""Compiles C files to freestanding programs, which are kept in a cache.

The header kjump.h, the run-time and the linker script are in gates/program.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import kjump.gates
from kjump.call.program import Arch, Preserve, Program, from_elf
from kjump.errors import FormatError, UsageError
from kjump.host.new_files import is_private, read_own, write_whole

SUPPORT = Path(kjump.gates.__file__).parent / "program"
_RUNTIME = SUPPORT / "runtime.c"
_PROTOTYPE = SUPPORT / "prototype.h"
_SCRIPT = SUPPORT / "program.ld"

_COMPILE = (
    "-std=gnu11", "-O2", "-Wall", "-Wextra", "-ffreestanding", "-fpie", "-fvisibility=hidden", "-mno-red-zone",
    "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fcf-protection=none", "-U_FORTIFY_SOURCE",
    "-fno-tree-loop-distribute-patterns",
)  # fmt: skip
_LINK = (
    "-nostdlib", "-static-pie", "-Wl,--no-dynamic-linker", "-Wl,--build-id=none", "-Wl,-z,noexecstack",
    "-Wl,--hash-style=sysv", "-Wl,--no-warn-rwx-segments",
)  # fmt: skip
_AS_IT_IS_CALLED = "as uint64_t {}(const uint64_t *args, size_t n)"
_GENERAL_REGISTERS = ("-mgeneral-regs-only",)
_SSE = ("-msse2", "-mfpmath=sse")


def compile_program(
    source: Path, *, arch: Arch = Arch.X86_64, function: str | None = None, preserve: Preserve = Preserve.NOTHING
) -> Program:
    """Return `source` compiled for `arch`, with `function` (default: the file's name) as the function to call.

    With Preserve.FPU the code may use SSE, else it is compiled without. UsageError when there is no compiler,
    FormatError with the compiler's first error when it does not compile.
    """
    name = function or re.sub(r"\W", "_", source.stem)
    if not (name.isidentifier() and name.isascii()):
        raise UsageError(f"{name!r} cannot be the name of a C function: name another with --function")
    return from_elf(compiled(source, arch, name, preserve), source.name)


def compiled(source: Path, arch: Arch, function: str, preserve: Preserve) -> bytes:
    """Return the executable (ELF) for a C file, from the cache when no input has changed."""
    compiler = _compiler()
    registers = _SSE if Preserve.FPU in preserve else _GENERAL_REGISTERS
    flags = [f"-m{arch.bits}", *_COMPILE, *registers]
    names = [f"-DKJUMP_FUNCTION={function}", f"-I{SUPPORT}", "-include", str(_PROTOTYPE)]
    # The preprocessor's output contains all inputs, included files too. That output is compiled, not the files again,
    # which may change meanwhile.
    texts = [_run([compiler, *flags, *names, "-E", str(file)], source, function) for file in (source, _RUNTIME)]
    content = [re.sub(rb"(?m)^# .*\n", b"", text) for text in texts]  # without the files' names
    key = hashlib.sha256(repr((compiler, flags, _LINK, _SCRIPT.read_bytes(), content)).encode())
    cached = _cache(f"{key.hexdigest()[:32]}.elf")
    found = read_own(cached) if cached else None
    if found is None:
        found = _made([compiler, *flags, *_LINK, f"-Wl,-T,{_SCRIPT}"], texts, source, function)
        if cached:
            write_whole(cached, found, mode=0o600)
    return found


def _made(command: Sequence[str], texts: Sequence[bytes], source: Path, function: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="kjump-") as folder:  # with access for this user only
        files = [Path(folder, f"{number}.i") for number, _ in enumerate(texts)]
        for file, text in zip(files, texts, strict=True):
            file.write_bytes(text)
        made = Path(folder, "made.elf")
        _run([*command, *map(str, files), "-o", str(made)], source, function)
        return made.read_bytes()


def _compiler() -> str:
    for name in (os.environ.get("CC", "cc"), "gcc", "clang"):
        found = shutil.which(name)
        if found:
            return found
    raise UsageError("a C file needs a compiler: install gcc, or give an ELF executable")


def _cache(name: str) -> Path | None:
    """Return the cache's path for the program `name`; None when others than this user could write to the cache.

    (With `sudo -E` the cache is the user's, who must not decide what root calls in physical mode.)
    """
    root = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(root) if root else Path.home() / ".cache") / "kjump" / "programs"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not is_private(fd):
            return None
        os.fchmod(fd, 0o700)
    finally:
        os.close(fd)
    return folder / name


def _run(command: Sequence[str], source: Path, function: str) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False, env=os.environ | {"LC_ALL": "C"})
    if done.returncode:
        raise FormatError(_first_complaint(done.stderr.decode(errors="replace"), source.name, function))
    return done.stdout


def _first_complaint(text: str, source: str, function: str) -> str:
    """Return the first error of compiler or linker about `source`, as one sentence."""
    errors = [line for line in text.splitlines() if re.search(r":\d+: (fatal )?error:", line)]
    missing = None if errors else re.search(r"undefined (?:reference to|symbol:) [`']?(\w+)", text)
    if missing and missing[1] == function:
        return f"{source} has no function {function}, {_AS_IT_IS_CALLED.format(function)}: name another with --function"
    if missing:
        return f"{source} uses {missing[1]}, which is neither in it nor in kjump.h"
    complaint = (errors or text.splitlines() or ["the compiler says nothing"])[0].strip()
    if "SSE" in complaint or "x87" in complaint or "general-regs-only" in complaint:
        complaint += " (floating point needs --preserve fpu)"
    if re.search(rf"(conflicting types for|declaration of|redeclared) .*\b{function}\b", complaint):
        complaint += f" (it is called {_AS_IT_IS_CALLED.format(function)})"
    return f"{source} does not compile: {complaint}"
