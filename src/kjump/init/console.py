"""B's and C's console: lines, a progress bar, and a key that cancels."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time

_CANCEL_KEYS = (b"\x1b", b"\x03", b"c", b"q")
_WIDTH = 30
_MIB = 1 << 20


class Console:
    """The console as PID 1 finds it on its standard input and output."""

    def line(self, text: str) -> None:
        """Print `text` as a line of its own, as far as there is a console that takes it: a role goes on without."""
        with contextlib.suppress(OSError, ValueError):
            encoding = sys.stdout.encoding or "ascii"
            sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            sys.stdout.flush()


class ProgressBar:
    """A bar with rate and time left, redrawn in place; with `cancellable`, Esc (or c, q, ^C) cancels."""

    def __init__(self, label: str, *, cancellable: bool) -> None:
        """Begin; nothing is drawn before the first call."""
        self._label = label
        self._cancellable = cancellable
        self._begun = time.monotonic()
        self._saved: list[int | list[bytes | int]] | None = None
        if cancellable:
            self._raw_keys()

    def _raw_keys(self) -> None:
        try:
            self._saved = termios.tcgetattr(0)
            mode = termios.tcgetattr(0)
            mode[3] &= ~(termios.ICANON | termios.ECHO | termios.ISIG)
            termios.tcsetattr(0, termios.TCSANOW, mode)
        except termios.error:
            self._cancellable = False

    def __call__(self, done: int, total: int, written: int) -> bool:
        """Draw `done` of `total` bytes, `written` to the target; return False when a key cancels."""
        seconds = max(time.monotonic() - self._begun, 1e-6)
        share = done / total if total else 1.0
        rate = done / seconds
        left = (total - done) / rate if rate else 0.0
        bar = "#" * int(share * _WIDTH)
        hint = "  Esc cancels" if self._cancellable else ""
        sys.stdout.write(
            f"\r{self._label} [{bar:<{_WIDTH}}] {share:4.0%} {done // _MIB} of {total // _MIB} MiB, "
            f"{rate / 1e6:.0f} MB/s, {left:.0f} s left{hint} "
        )
        sys.stdout.flush()
        return not self._key_pressed()

    def _key_pressed(self) -> bool:
        if not self._cancellable or not select.select([0], [], [], 0)[0]:
            return False
        return os.read(0, 16)[:1] in _CANCEL_KEYS

    def close(self) -> None:
        """End the bar's line and give the keyboard back."""
        sys.stdout.write("\n")
        sys.stdout.flush()
        if self._saved is not None:
            termios.tcsetattr(0, termios.TCSANOW, self._saved)
