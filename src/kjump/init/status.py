"""The status channel: one JSON object a line, on a virtio-serial port of its own, never on the console.

The laboratory listens there; a machine without such a port runs the same, and nothing is sent.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from kjump.host import root

_PORTS = Path("/sys/class/virtio-ports")


def find_port(name: str) -> str | None:
    """Return the device file of the virtio-serial port called `name`, or None."""
    ports = root.at(_PORTS)
    if ports.is_dir():
        for port in ports.iterdir():
            label = port / "name"
            if label.exists() and label.read_text().strip() == name:
                return f"/dev/{port.name}"
    return None


class Status:
    """Sends events; silent when there is no port."""

    def __init__(self, fd: int | None) -> None:
        """Send to `fd`, or nowhere."""
        self._fd = fd

    @classmethod
    def open(cls, name: str | None, timeout: float = 2.0) -> Status:
        """Open the port called `name` (None: no port), waiting for it at most `timeout` seconds."""
        if not name:
            return cls(None)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            path = find_port(name)
            if path is not None:
                try:
                    return cls(os.open(root.at(path), os.O_RDWR | os.O_CLOEXEC))
                except OSError:
                    pass
            time.sleep(0.01)
        return cls(None)

    def send(self, event: str, **details: Any) -> None:
        """Send one event; a port that nobody reads any more is left alone from then on."""
        if self._fd is None:
            return
        try:
            os.write(self._fd, json.dumps({"event": event, **details}).encode() + b"\n")
        except OSError:
            self._fd = None

    def close(self) -> None:
        """Give the port back, so that another program can open it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
