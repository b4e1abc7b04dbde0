"""The serial console of a virtual machine."""

from __future__ import annotations

import contextlib
import re
import socket
import threading

_KERNEL_LINE = re.compile(r"\[ *\d+\.\d{6}\] [^\n]*\n")


def without_kernel_lines(console: str) -> str:
    """Return what programs wrote to a serial console: the kernel prints its lines at once, in the midst of theirs."""
    return _KERNEL_LINE.sub("", console)


class SerialConsole:
    """The host's end of a serial console: all that the guest printed, and keys for it."""

    def __init__(self, connection: socket.socket) -> None:
        """Listen on `connection` from now on, in a thread of its own."""
        self._socket = connection
        self._printed = bytearray()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        # Not QEMU's own logfile=: a byte that finds the socket full is tried again, and is in that file twice.
        with contextlib.suppress(OSError):
            while data := self._socket.recv(65536):
                self._printed += data

    def wait_for_the_end(self, timeout: float = 5.0) -> None:
        """Wait for what a machine that has ended wrote last, at most `timeout` seconds."""
        self._listener.join(timeout)

    def text(self) -> str:
        """Return all that was printed so far."""
        return self._printed.decode(errors="replace")

    def type(self, keys: bytes) -> None:
        """Send `keys` to the guest."""
        self._socket.sendall(keys)
