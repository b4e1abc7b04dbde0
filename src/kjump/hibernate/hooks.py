"""Hooks: a program that saves the state of A's file systems with a snapshot, and restores it before a roll-back.

The same program is called with `save` in the second kernel and with `restore` in the restoring kernel. It is stored in
the image's facts, with the names and digests of the tools it needs, but not the tools themselves. In the initramfs of
both kernels the hook is /kjump/hook, and its tools are in /kjump/tools, which is first on its PATH. With a tool called
busybox there is a /bin/sh.
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
"""The default time limit of a hook, in seconds; the parked system waits for it."""


def read_hook(path: Path, tools: Iterable[Path], timeout: float = TIMEOUT) -> Hook:
    """Read the hook at `path`, with its `tools` and its time limit in seconds; UsageError when it cannot be one."""
    program = path.read_bytes()
    if len(program) > HOOK_LIMIT:
        raise UsageError(f"the hook {path} has {len(program)} bytes, at most {HOOK_LIMIT} can be kept in an image")
    if not program.startswith((b"#!", b"\x7fELF")):
        raise UsageError(f"the hook {path} is neither a script that begins with #! nor a program")
    return Hook(program, tuple(Tool(str(tool.resolve()), _digest(tool)) for tool in tools), timeout)


def archive(hook: Hook) -> bytes:
    """Return a cpio archive of the hook, to be appended to an initramfs; ImageError when a tool has changed.

    A tool that this system does not have at its path may be in the initramfs already (see `tool_entries`).
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
    """Return the environment variables of a hook."""
    return {"PATH": f"{TOOLS}:/usr/bin:/bin", "HOME": "/", "LC_ALL": os.environ.get("LC_ALL", "C")}
