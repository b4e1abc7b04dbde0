"""The jump that leaves this system for a second kernel, and what must be done first when this system is back.

While this system is parked, the second kernel may write a complete image of it. If this system then goes on, its
file systems change, and a boot that resumed that image would destroy them. The image is therefore made unusable before
anything else is done, whatever the second kernel reports, through the target that was claimed before the jump.

The image is kept in two cases only. Either this system was resumed from it: the restoring kernel marked it as consumed,
durably, before it wrote the outcome RESUMED to the mailbox. Or the image is a snapshot or a dump, and the outcome is
DONE. A damaged mailbox, and the outcome NONE that is posted before the jump, are neither case.

Signals are blocked meanwhile. Otherwise Python would raise KeyboardInterrupt at any point of the main thread, and
SIGHUP (from a closed terminal) or SIGTERM (from a service manager) could end the process as soon as the kernel thaws
all processes. SIGKILL cannot be blocked.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from types import TracebackType

from kjump import _core
from kjump.errors import TargetError
from kjump.formats.record import JsonObject
from kjump.hibernate import post_mortem
from kjump.hibernate.clock import Moment
from kjump.hibernate.report import Report, received
from kjump.image.facts import Kind
from kjump.kexec.mailbox import Outcome
from kjump.target.device import Target

Tell = Callable[[str], None]
_WENT_ON = "the saved system went on"
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGSYS}
"""Signals that the process itself causes; a blocked one would end it without a traceback."""


class Away:
    """A context manager around the jump and the reading of the mailbox.

    Within the context `came_back` is called as soon as the outcome can be read. At the end of the context, also by an
    exception, the image on `target` is made unusable unless it may be kept; then signals are unblocked. Without a
    target there is no image. `left` has the clocks just before the jump, `back` the time stamp counter just after it.
    """

    def __init__(
        self, target: Target | None = None, kind: Kind = Kind.HIBERNATION, tell: Tell = lambda _: None
    ) -> None:
        """Prepare for the jump; `target` must be armed when it begins. `tell` gets errors that must not be lost."""
        self._target = target
        self._kind = kind
        self._tell = tell
        self.left, self.back = Moment(0.0, 0), 0
        self.outcome = Outcome.NONE
        self.report = Report()

    def __enter__(self) -> Away:
        """Block signals, and note the time of the jump."""
        self._signals = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            # Python handlers of signals that arrived earlier run within this call, and may raise.
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
        except BaseException:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._signals)
            raise
        self.left = Moment.now()
        self.back = self.left.stamp
        return self

    def landed(self) -> None:
        """Note the time at which the jump returned."""
        self.back = _core.time_stamp()

    def came_back(self, read: Callable[[], tuple[Outcome, JsonObject]]) -> None:
        """Note the outcome and the report that `read` finds in the mailbox."""
        self.outcome, self.report = received(read)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Make the image unusable unless it may be kept, then unblock signals.

        TargetError, which says what to do, when that fails; it is raised before any exception that a waiting signal
        causes.
        """
        failure = None
        try:
            failure = self._give_up_image(error)
        finally:
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, self._signals)
            finally:
                if failure is not None:
                    raise failure

    def _may_stay(self) -> bool:
        wanted = self._kind is not Kind.HIBERNATION and self.outcome == Outcome.DONE
        return wanted or self.outcome == Outcome.RESUMED

    def _give_up_image(self, raised: BaseException | None) -> TargetError | None:
        """Make the image unusable; return the error to raise when that fails, else None."""
        if self._target is None or self._may_stay():
            return None
        try:
            self._target.give_up_image(_WENT_ON)
        except Exception as error:
            why = post_mortem.reason(self.outcome, self.report) if raised is None else str(raised)
            sentence = _warning(self._target.path, error, why)
            with contextlib.suppress(Exception):
                self._tell(sentence)  # now: a waiting signal may end this process before the error is printed
            return TargetError(sentence)
        return None


def _warning(path: str, error: Exception, why: str) -> str:
    """Return the message for an image on `path` that `error` kept usable; `why` is why this system goes on."""
    went_on = f"this system went on ({why})" if why else "this system went on"
    return (
        f"{went_on}, but the image of it on {path} could not be made unusable ({error}): resuming it would destroy "
        "file systems. Start the next boot with kjump.noresume on the kernel command line, or overwrite the "
        f"superblock: dd if=/dev/zero of={path} bs=4096 count=1 conv=notrunc oflag=direct"
    )
