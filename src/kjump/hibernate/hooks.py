"""Hooks: a program that puts A's file systems aside while A is saved, and back before a snapshot comes back.

One program for both, called with `save` in B and with `restore` in C. It travels with the snapshot, in the image's
facts; so do the names and digests of the tools it needs, but not the tools themselves. In the initramfs of B and C it
is /kjump/hook, and its tools are in /kjump/tools, which is first on its PATH. With a tool called busybox there is a
/bin/sh.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kjump.errors import ImageError, UsageError
from kjump.formats import cpio
from kjump.initramfs.contents import TOOLS, tool_entries

HOOK = Path("/kjump/hook")
TIMEOUT = 600.0
"""Seconds that a hook may take, if nothing else was said: A waits for it."""
SIZE_LIMIT = 64 << 10
"""Bytes of a hook: it is part of the image's headers."""


@dataclass(frozen=True)
class Tool:
    """A program that a hook calls: where it was when the snapshot was taken, and the SHA-256 of its contents."""

    path: str
    digest: str

    @property
    def inside(self) -> Path:
        """Where it is in the initramfs."""
        return TOOLS / Path(self.path).name


@dataclass(frozen=True)
class Hook:
    """A hook's program, and its tools."""

    program: bytes
    tools: tuple[Tool, ...] = ()

    @classmethod
    def read(cls, path: Path, tools: Iterable[Path]) -> Hook:
        """Read a hook; UsageError when it cannot be one."""
        program = path.read_bytes()
        if len(program) > SIZE_LIMIT:
            raise UsageError(f"the hook {path} has {len(program)} bytes, at most {SIZE_LIMIT} can be kept in an image")
        if not program.startswith((b"#!", b"\x7fELF")):
            raise UsageError(f"the hook {path} is neither a script that begins with #! nor a program")
        return cls(program, tuple(Tool(str(tool.resolve()), _digest(tool)) for tool in tools))

    def as_json(self) -> dict[str, Any]:
        """Return it for an image's facts."""
        tools = [{"path": tool.path, "digest": tool.digest} for tool in self.tools]
        return {"program": base64.b64encode(self.program).decode(), "tools": tools}

    @classmethod
    def of_facts(cls, facts: dict[str, Any]) -> Hook | None:
        """Return the hook in an image's facts, if there is one."""
        value = facts.get("hook")
        if not value:
            return None
        return cls(base64.b64decode(value["program"]), tuple(Tool(t["path"], t["digest"]) for t in value["tools"]))

    def packed(self) -> bytes:
        """Return the archive that goes behind an initramfs; ImageError when a tool is not what it was.

        A tool that this system does not have at its place may be in the initramfs already (see `tool_entries`).
        """
        entries = [cpio.regular(str(HOOK), self.program, 0o755)]
        for tool in self.tools:
            if Path(tool.path).exists() and _digest(Path(tool.path)) == tool.digest:
                entries += tool_entries([Path(tool.path)])
            elif not (tool.inside.exists() and _digest(tool.inside) == tool.digest):
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
