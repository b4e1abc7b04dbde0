"""The jump that leaves this system for a second kernel, and what must be done first when this system is back.

While this system is away the second kernel may have written a complete image of it. If this system goes on, its
file systems change, and a boot that resumed that image would destroy them. So the image is made unusable before
anything else is done, whatever the other side says of it, through the target that was claimed before the jump.

An image may stay in two cases only. The system was resumed from it: who restored it marked it as consumed, durably,
before saying RESUMED in the mailbox. Or it is a snapshot or a dump, and the other side says that it is DONE. A mailbox
that is damaged says neither. The outcome NONE that is posted before the jump says neither, too.

Signals wait meanwhile. Python raises KeyboardInterrupt wherever the main thread happens to be, and a terminal that was
closed or a service manager that stops us would end the process by SIGHUP or SIGTERM, just when all processes thaw.
SIGKILL cannot wait.
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
"""What the process does to itself: blocked, such a signal would end it without a word."""


class Away:
    """One absence: a context manager around the jump and the look at what the other side left.

    Within it `came_back` is called as soon as the outcome is known. At its end, however that is reached, the image on
    `target` is unusable unless it may stay; then signals are let in. Without a target there is no image. `left` and
    `back` are the clocks just before, and the time stamp counter just after the jump.
    """

    def __init__(
        self, target: Target | None = None, kind: Kind = Kind.HIBERNATION, tell: Tell = lambda _: None
    ) -> None:
        """Prepare to leave; `target` is armed by then. `tell` gets what a user must know before all else."""
        self._target = target
        self._kind = kind
        self._tell = tell
        self.left, self.back = Moment(0.0, 0), 0
        self.outcome = Outcome.NONE
        self.report = Report()

    def __enter__(self) -> Away:
        """Block signals, and note when this system is left."""
        self._signals = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            # Handlers of what came before run within this call, and may raise.
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
        except BaseException:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._signals)
            raise
        self.left = Moment.now()
        self.back = self.left.stamp
        return self

    def landed(self) -> None:
        """Note the moment: the jump has returned."""
        self.back = _core.time_stamp()

    def came_back(self, read: Callable[[], tuple[Outcome, JsonObject]]) -> None:
        """Note what the mailbox says, as `read` finds it: an outcome, and the report."""
        self.outcome, self.report = received(read)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Make the image unusable if it must not stay, then let signals in.

        TargetError when it cannot be made so; it says what to do, and comes before whatever a signal raises.
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
        """Return what must be said of an image that is still there, or None when there is none."""
        if self._target is None or self._may_stay():
            return None
        try:
            self._target.give_up_image(_WENT_ON)
        except Exception as error:
            why = post_mortem.reason(self.outcome, self.report) if raised is None else str(raised)
            sentence = _warning(self._target.path, error, why)
            with contextlib.suppress(Exception):
                self._tell(sentence)  # now: a signal that waits may end this process before anybody hears the error
            return TargetError(sentence)
        return None


def _warning(path: str, error: Exception, why: str) -> str:
    """Return what to say when `error` kept the image on `path`; `why` is the reason why this system goes on."""
    went_on = f"this system went on ({why})" if why else "this system went on"
    return (
        f"{went_on}, but the image of it on {path} could not be made unusable ({error}): resuming it would destroy "
        "file systems. Start the next boot with kjump.noresume on the kernel command line, or overwrite the "
        f"superblock: dd if=/dev/zero of={path} bs=4096 count=1 conv=notrunc oflag=direct"
    )
