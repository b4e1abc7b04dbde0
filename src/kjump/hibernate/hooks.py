"""Hooks: a program that puts A's file systems aside while A is saved, and back before a snapshot comes back.

One program for both, called with `save` in B and with `restore` in C. It travels with the snapshot, in the image's
facts; so do the names and digests of the tools it needs, but not the tools themselves. In the initramfs of B and C it
is /kjump/hook, and its tools are in /kjump/tools, which is first on its PATH. With a tool called busybox there is a
/bin/sh.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from kjump.errors import ImageError, UsageError
from kjump.formats import cpio
from kjump.image.facts import HOOK_LIMIT, Hook, Tool
from kjump.initramfs.contents import TOOLS, tool_entries

HOOK = Path("/kjump/hook")
TIMEOUT = 600.0
"""Seconds that a hook may take, if nothing else was said: A waits for it."""


def read_hook(path: Path, tools: Iterable[Path], timeout: float = TIMEOUT) -> Hook:
    """Read a hook that may take `timeout` seconds; UsageError when it cannot be one."""
    program = path.read_bytes()
    if len(program) > HOOK_LIMIT:
        raise UsageError(f"the hook {path} has {len(program)} bytes, at most {HOOK_LIMIT} can be kept in an image")
    if not program.startswith((b"#!", b"\x7fELF")):
        raise UsageError(f"the hook {path} is neither a script that begins with #! nor a program")
    return Hook(program, tuple(Tool(str(tool.resolve()), _digest(tool)) for tool in tools), timeout)


def archive(hook: Hook) -> bytes:
    """Return the archive that goes behind an initramfs; ImageError when a tool is not what it was.

    A tool that this system does not have at its place may be in the initramfs already (see `tool_entries`).
    """
    entries = [cpio.regular(str(HOOK), hook.program, 0o755)]
    for tool in hook.tools:
        inside = TOOLS / Path(tool.path).name
        if Path(tool.path).exists() and _digest(Path(tool.path)) == tool.digest:
            entries += tool_entries([Path(tool.path)])
        elif not (inside.exists() and _digest(inside) == tool.digest):
            raise ImageError(
                f"the hook's tool {tool.path} is not here, or not the one it was when the snapshot was taken"
            )
    return cpio.write(entries)


def _digest(path: Path) -> str:
    import hashlib  # not needed before the jump, and slow to load

    return hashlib.sha256(path.read_bytes()).hexdigest()


def environment() -> dict[str, str]:
    """Return the environment of a hook."""
    return {"PATH": f"{TOOLS}:/usr/bin:/bin", "HOME": "/", "LC_ALL": os.environ.get("LC_ALL", "C")}
