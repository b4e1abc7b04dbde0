"""The messages of host and guest on the status channel, one JSON object a line.

The host sends requests; the guest's PID 1 runs the command of each request, and sends its end. Lines with "event" come
from that PID 1 too, and from the roles of kjump's initramfs (`kjump.init.status`).
"""

from __future__ import annotations

from dataclasses import dataclass

from kjump.formats.record import JsonObject, Record


@dataclass(frozen=True)
class CommandRequest:
    """A command that the guest shall run; its end comes back under the same `number`."""

    number: int
    command: tuple[str, ...]

    def to_json(self) -> JsonObject:
        """Return it for a line of JSON."""
        return {"id": self.number, "run": list(self.command)}

    @classmethod
    def from_json(cls, record: Record) -> CommandRequest:
        """Read what `to_json` made; FormatError."""
        return cls(record.integer("id"), record.texts("run"))


@dataclass(frozen=True)
class CommandEnd:
    """The end of a command: its exit `status` (negative: the signal that ended it), and what it printed."""

    number: int
    status: int
    stdout: str
    stderr: str

    def to_json(self) -> JsonObject:
        """Return it for a line of JSON."""
        return {"id": self.number, "status": self.status, "stdout": self.stdout, "stderr": self.stderr}

    @classmethod
    def from_json(cls, record: Record) -> CommandEnd:
        """Read what `to_json` made; FormatError."""
        return cls(
            number=record.integer("id"),
            status=record.integer("status", low=-64, high=255),
            stdout=record.text("stdout", limit=_OUTPUT_LIMIT),
            stderr=record.text("stderr", limit=_OUTPUT_LIMIT),
        )


_OUTPUT_LIMIT = 1 << 28
