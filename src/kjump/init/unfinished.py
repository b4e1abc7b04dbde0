"""The image that a job writes, as long as A must not find it: whoever goes back to A first makes it unusable.

Two threads may come here: the job's, and that of its time limit, which goes back while the job is still at work. So
the superblock that says complete is written under a lock, and never once the image was given up. A disk that hangs in
that write keeps the lock. The time limit does not wait for it for longer than `_PATIENCE`: A is back then, with this
kernel's devices shut down, and makes the image unusable itself.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from kjump.errors import KjumpError, TargetError
from kjump.formats.superblock import Superblock
from kjump.init.watchdog import Guard
from kjump.target.device import Target

_PATIENCE = 10.0
"""Seconds for which a return to A waits for the target."""


class Unfinished:
    """An image that is complete on `target`, the medium, before its job has come to its end."""

    def __init__(self, target: Target) -> None:
        """Nothing is complete yet; the target is closed at the job's end."""
        self.target = target
        self._lock = threading.Lock()
        self._complete = self._given_up = self._decided = False

    def finish(self, superblock: Superblock) -> None:
        """Write the `superblock` that says complete; TargetError when it fails, or the image was given up before."""
        with self._lock:
            self._refuse_if_given_up()
            self._complete = True  # also if the write fails: it may be on the medium all the same
            self.target.write_superblock(superblock)

    def keep(self) -> None:
        """The image is what A wants: it stays. TargetError when it was given up before."""
        with self._lock:
            self._refuse_if_given_up()
            self._decided = True

    def _refuse_if_given_up(self) -> None:
        if self._given_up:
            raise TargetError("the image was given up while it was written")

    def give_up(self) -> bool:
        """Make it unusable unless it is kept or was never complete; tell whether the target took no longer than that.

        The first that is done, without the lock, is to forbid `finish`.
        """
        self._given_up = True
        thread = threading.Thread(target=self._make_unusable, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no memory for a thread
            self._make_unusable()
            return True
        thread.join(_PATIENCE)
        return not thread.is_alive()

    def _make_unusable(self) -> None:
        with self._lock:
            if self._complete and not self._decided:
                with contextlib.suppress(KjumpError):  # A does it again
                    self.target.give_up_image("the second kernel went back after it had saved")
                    self._decided = True

    def close(self) -> None:
        """End: what is not kept is given up, and the target is closed, or left to a thread that hangs in it."""
        if self.give_up():
            self._decided = True
            self.target.close()


@contextlib.contextmanager
def unfinished(target: Target, guard: Guard) -> Iterator[Unfinished]:
    """Have an image on `target` for the time of a job: at its end it is kept, or unusable, and the target closed."""
    image = Unfinished(target)
    guard.before_return(image.give_up)
    try:
        yield image
    finally:
        image.close()
