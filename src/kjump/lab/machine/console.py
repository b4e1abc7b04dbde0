"""The serial console of a virtual machine."""

from __future__ import annotations

import contextlib
import re
import socket
import threading

_KERNEL_LINE = re.compile(r"\[ *\d+\.\d{6}\] [^\n]*\n")


def without_kernel_lines(console: str) -> str:
    """Return a serial console's output without the kernel's lines, which may interrupt a program's line."""
    return _KERNEL_LINE.sub("", console)


class SerialConsole:
    """The host's end of a serial console: receives the guest's output, and sends keys."""

    def __init__(self, connection: socket.socket) -> None:
        """Listen on `connection` in a thread."""
        self._socket = connection
        self._printed = bytearray()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        # QEMU's own logfile= is not used: when the socket is full QEMU writes a byte again, and to that file twice.
        with contextlib.suppress(OSError):
            while data := self._socket.recv(65536):
                self._printed += data

    def wait_for_the_end(self, timeout: float = 5.0) -> None:
        """Wait, at most `timeout` seconds, for the last output of a machine that has ended."""
        self._listener.join(timeout)

    def text(self) -> str:
        """Return all output so far."""
        return self._printed.decode(errors="replace")

    def type(self, keys: bytes) -> None:
        """Send `keys` to the guest."""
        self._socket.sendall(keys)
