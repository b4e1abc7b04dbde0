"""The guard of a job in B: a time limit, and the machine's watchdog, so that A is back when the job is not.

The time limit is kept by a thread that leaves for A by itself. What stops even that (a CPU that spins with interrupts
off, an interpreter that hangs) starves the watchdog: its NMI makes B panic, and the crash slot leads to A.

Either the job ends in time or its time limit strikes, never both: whoever comes first under the guard's lock. After
`disarm` has said so the thread does not leave for A any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable

from kjump.host import root

WATCHDOG = "/dev/watchdog"
_WDIOC_SETTIMEOUT = 0xC0045706
_PETS_IN_A_TIMEOUT = 4


class Guard:
    """Watches over a job until it is disarmed."""

    def __init__(self) -> None:
        """Begin with nothing to watch."""
        self._disarmed = threading.Event()
        self._lock = threading.Lock()
        self._struck = self._ended = False
        self._undo: Callable[[], object] = lambda: None
        self._watchdog: int | None = None

    def limit(self, seconds: float, expired: Callable[[], None]) -> None:
        """Call `expired`, from a thread, unless the guard is disarmed within `seconds`."""

        def wait() -> None:
            if not self._disarmed.wait(seconds) and self._strike():
                expired()

        threading.Thread(target=wait, daemon=True).start()

    def start_watchdog(self, seconds: int) -> bool:
        """Start the machine's watchdog with a timeout of `seconds`; tell whether there is one.

        It is fed by a thread that first visits every CPU: one that hangs is found whichever it is.
        """
        place = root.at(WATCHDOG)
        if not place.exists():
            return False
        self._watchdog = os.open(place, os.O_WRONLY | os.O_CLOEXEC)
        fcntl.ioctl(self._watchdog, _WDIOC_SETTIMEOUT, seconds.to_bytes(4, "little"))
        threading.Thread(target=self._feed, args=(seconds / _PETS_IN_A_TIMEOUT,), daemon=True).start()
        return True

    def _feed(self, interval: float) -> None:
        cpus = sorted(os.sched_getaffinity(0))
        while self._watchdog is not None:
            for cpu in cpus:
                os.sched_setaffinity(0, {cpu})
            os.write(self._watchdog, b"\0")
            time.sleep(interval)

    def _strike(self) -> bool:
        with self._lock:
            self._struck = not self._disarmed.is_set()
            return self._struck

    def disarm(self) -> bool:
        """Stop the clock, and tell whether it had not struck; if not, its thread never leaves for A.

        The watchdog goes on, for what is still to be done may hang.
        """
        with self._lock:
            self._disarmed.set()
            return not self._struck

    def before_return(self, undo: Callable[[], object]) -> None:
        """Have `undo` called by whoever leaves for A first, or now if somebody is; it must not wait for long."""
        self._undo = undo
        if self._ended:
            undo()

    def end(self) -> None:
        """Stop to watch, and undo what A must not find: this kernel is about to leave for A."""
        self.disarm()
        self._ended = True
        with contextlib.suppress(Exception):  # nothing may keep us from going back
            self._undo()
        self.stop_watchdog()

    def stop_watchdog(self) -> None:
        """Stop the watchdog: the next kernel must not be interrupted by it."""
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            os.write(watchdog, b"V")  # what the watchdog API wants to see before a close that stops it
            os.close(watchdog)
