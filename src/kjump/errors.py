"""What can go wrong, as one sentence a person can act on.

Every error that kjump raises on purpose derives from `KjumpError`. Its text is one clear sentence: what is
wrong, where, and what to do. The command line prints it without a traceback and exits with `exit_status`.
"""


class KjumpError(Exception):
    """The base of all errors kjump raises on purpose."""

    exit_status = 1


class UsageError(KjumpError):
    """The caller asked for something that makes no sense (exit status 2)."""

    exit_status = 2


class FormatError(KjumpError):
    """Bytes are not of the format they were read as: damaged, truncated, or another kind of file."""


class PlanError(KjumpError):
    """No valid load plan can be made: no room for a window, overlapping segments, and the like."""


class HostError(KjumpError):
    """The running kernel refused or lacks something: a system call, a file in /proc or /sys, a privilege."""


class TargetError(KjumpError):
    """The place where an image is kept cannot be used: missing, too small, in use, an I/O error."""


class ImageError(KjumpError):
    """An image cannot be used: damaged, half written, consumed, or of another machine."""


class JumpError(KjumpError):
    """A jump was made and what came back says that the job on the other side failed."""


class LabError(KjumpError):
    """The laboratory of virtual machines cannot do what was asked."""


def in_words(error: BaseException) -> str:
    """Return `error` as one sentence: what kjump raises is one already, anything else is named by its type."""
    if isinstance(error, KjumpError):
        return str(error)
    text = " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {text}" if text else f"unexpected {type(error).__name__}"
