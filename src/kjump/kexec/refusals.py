"""Why a kernel refuses to load or to jump: one sentence for each error number of kexec_load and reboot."""

from __future__ import annotations

import errno
import os

from kjump.errors import HostError

_WHY_LOAD = {
    errno.EPERM: "root with CAP_SYS_BOOT is needed, and neither lockdown nor kernel.kexec_load_disabled may be on",
    errno.EBUSY: "another load or jump is under way, or pages of the image are in use: try again",
    errno.EINVAL: "the kernel refuses the segments (at most 16, half of RAM, no overlap) or the flags",
    errno.EFAULT: "the data of a segment cannot be read",
    errno.EADDRNOTAVAIL: "a segment is not page aligned, or lies outside the memory the kernel allows",
    errno.ENOMEM: "not enough free memory for the copies of the segments: free some, or take a smaller window",
    errno.ENOSYS: "this kernel is built without CONFIG_KEXEC",
}
_WHY_LOAD_FILE = {
    errno.EPERM: _WHY_LOAD[errno.EPERM],
    errno.EBUSY: _WHY_LOAD[errno.EBUSY],
    errno.EINVAL: "the kernel refuses the command line, or what crashkernel= set aside is too small",
    errno.EADDRNOTAVAIL: "what crashkernel= set aside is too small for kernel and initial RAM disk: set more aside",
    errno.ENOEXEC: "that is no bzImage which can be entered in 64-bit mode",
    errno.ENOMEM: "not enough free memory: free some",
    errno.ENOSYS: "this kernel is built without CONFIG_KEXEC_FILE",
    errno.EKEYREJECTED: "this kernel wants kernels with a signature it knows, and this one has another",
    errno.ENODATA: "this kernel wants kernels with a signature, and this one has none",
}
_WHY_JUMP = {
    errno.EPERM: "root with CAP_SYS_BOOT is needed",
    errno.EBUSY: "a task refused to freeze, or another load or jump is under way: try again",
    errno.EINVAL: "nothing is loaded, or the kernel is built without CONFIG_KEXEC_JUMP",
    errno.ENOSYS: "this kernel is built without kexec jump",
}
_UNWOUND = "a device did not let itself be suspended; the kernel has undone the jump and nothing is harmed"


class RefusedError(HostError):
    """A kernel refused a system call; `number` is the error number (errno) that it returned."""

    def __init__(self, text: str, number: int) -> None:
        """Take the whole sentence and the error number."""
        super().__init__(text)
        self.number = number


def _explain(number: int, reason: str | None) -> str:
    text = f"{errno.errorcode.get(number, number)}, {os.strerror(number)}"
    return f"{text} ({reason})" if reason else text


def refused_load(number: int, request: str) -> RefusedError:
    """Return the error for a refused load; `request` says what was asked for."""
    return RefusedError(f"kexec_load refused: {_explain(number, _WHY_LOAD.get(number))}. Asked: {request}", number)


def refused_load_file(number: int, request: str) -> RefusedError:
    """Return the error for a refused kexec_file_load; `request` says what was asked for."""
    why = _explain(number, _WHY_LOAD_FILE.get(number))
    return RefusedError(f"kexec_file_load refused: {why}. Asked: {request}", number)


def refused_unload(number: int) -> RefusedError:
    """Return the error for an image that could not be dropped."""
    return RefusedError(f"kexec_load refused to unload: {_explain(number, _WHY_LOAD.get(number))}", number)


def refused_jump(number: int) -> RefusedError:
    """Return the error for a jump that the kernel refused, or undid before it entered the image."""
    return RefusedError(f"the jump was refused: {_explain(number, _WHY_JUMP.get(number, _UNWOUND))}", number)
