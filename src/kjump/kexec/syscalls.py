"""The system calls kexec_load, kexec_file_load and reboot. No other module of kjump makes them.

Numbers are those of Linux on x86_64 and i386 (arch/x86/entry/syscalls, include/uapi/linux/{kexec,reboot}.h).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from kjump.errors import HostError
from kjump.formats import cmdline
from kjump.host import root
from kjump.host.libc import libc
from kjump.kexec.plan import SEGMENT_MAX, Plan
from kjump.kexec.refusals import refused_jump, refused_load, refused_load_file, refused_unload

if TYPE_CHECKING:
    from kjump.host.kernel_memory import Kcore

_SYS_KEXEC_LOAD = {"x86_64": 246, "i686": 283, "i386": 283}
_SYS_KEXEC_FILE_LOAD = {"x86_64": 320}
_SYS_REBOOT = {"x86_64": 169, "i686": 88, "i386": 88}

_MAGIC1 = 0xFEE1DEAD
_MAGIC2 = 672274793
_CMD_RESTART = 0x01234567
_CMD_HALT = 0xCDEF0123
_CMD_POWER_OFF = 0x4321FEDC
_CMD_KEXEC = 0x45584543

_RCU_EXPEDITED = Path("/sys/kernel/rcu_expedited")

_FILE_ON_CRASH = 2
_FILE_NO_INITRAMFS = 4


class _Segment(ctypes.Structure):
    _fields_ = (
        ("buf", ctypes.c_char_p),
        ("bufsz", ctypes.c_size_t),
        ("mem", ctypes.c_void_p),
        ("memsz", ctypes.c_size_t),
    )


def _syscall(number: int, *arguments: object) -> int:
    ctypes.set_errno(0)
    return int(libc().syscall(ctypes.c_long(number), *arguments))


def _number(table: dict[str, int]) -> int:
    machine = os.uname().machine
    if machine not in table:
        raise HostError(f"kjump does this on {' and '.join(sorted({*table} - {'i686'}))}, not on {machine}")
    return table[machine]


def load(plan: Plan) -> None:
    """Load `plan` into the kernel; HostError, with the reason and the whole request, when the kernel refuses."""
    segments = (_Segment * len(plan.segments))()
    for slot, segment in zip(segments, plan.segments, strict=True):
        slot.buf = segment.data or None
        slot.bufsz = len(segment.data)
        slot.mem = segment.address
        slot.memsz = segment.memory_size
    result = _syscall(
        _number(_SYS_KEXEC_LOAD),
        ctypes.c_ulong(plan.entry),
        ctypes.c_ulong(len(plan.segments)),
        segments,
        ctypes.c_ulong(plan.flags),
    )
    if result:
        raise refused_load(ctypes.get_errno(), str(plan))


def load_on_crash(kernel: Path, initrd: Path | None, command_line: str) -> None:
    """Load the bzImage `kernel` to be started when the running kernel panics (kexec_file_load, KEXEC_FILE_ON_CRASH).

    The running kernel places it in the memory that `crashkernel=` set aside, and adds `elfcorehdr=` to its command
    line. HostError, with the reason, when the kernel refuses.
    """
    if crash_memory() == 0:
        raise HostError("no memory is set aside for a crash kernel: boot this one with crashkernel=256M, say")
    line = cmdline.encode(command_line) + b"\0"
    with ExitStack() as files:
        kernel_file, *initrd_file = (files.enter_context(path.open("rb")) for path in filter(None, (kernel, initrd)))
        result = _syscall(
            _number(_SYS_KEXEC_FILE_LOAD),
            ctypes.c_int(kernel_file.fileno()),
            ctypes.c_int(initrd_file[0].fileno() if initrd_file else -1),
            ctypes.c_ulong(len(line)),
            line,
            ctypes.c_ulong(_FILE_ON_CRASH | (0 if initrd_file else _FILE_NO_INITRAMFS)),
        )
    if result:
        asked = f"{kernel}, {initrd or 'no initial RAM disk'}, command line {command_line!r}"
        raise refused_load_file(ctypes.get_errno(), asked)


def unload(flags: int) -> None:
    """Unload the image for `flags` (the architecture, and ON_CRASH for the crash slot); HostError when refused."""
    if _syscall(_number(_SYS_KEXEC_LOAD), ctypes.c_ulong(0), ctypes.c_ulong(0), None, ctypes.c_ulong(flags)):
        raise refused_unload(ctypes.get_errno())


def is_loaded(*, on_crash: bool = False) -> bool:
    """Tell whether the kernel holds a loaded image (in its crash slot with `on_crash`)."""
    return _number_in_sys("kexec_crash_loaded" if on_crash else "kexec_loaded") == 1


def crash_memory() -> int:
    """Return the size in bytes of the memory set aside for a crash kernel (`crashkernel=`)."""
    return _number_in_sys("kexec_crash_size")


def _number_in_sys(name: str) -> int:
    try:
        return int(root.at(f"/sys/kernel/{name}").read_text())
    except OSError as error:
        raise HostError(f"cannot read /sys/kernel/{name}: {error.strerror}; is CONFIG_KEXEC set?") from None


def _reboot(command: int) -> int:
    return _syscall(
        _number(_SYS_REBOOT),
        ctypes.c_ulong(_MAGIC1),
        ctypes.c_ulong(_MAGIC2),
        ctypes.c_ulong(command),
        None,
    )


def jump() -> None:
    """Enter the loaded image; with preserved context this returns when the other kernel or program comes back.

    HostError when the kernel refuses or unwinds the jump; the image was not entered then.
    """
    # Suspending devices and taking CPUs offline waits for RCU grace periods, each some ticks long. The kernel
    # expedites them for its own sleep states, but not for a jump (kernel-parameters.txt, rcupdate.rcu_expedited).
    with setting(_RCU_EXPEDITED, "1"):
        if _reboot(_CMD_KEXEC):
            raise refused_jump(ctypes.get_errno())


@contextlib.contextmanager
def setting(path: Path, value: str) -> Iterator[bool]:
    """Set the kernel's setting at `path` to `value` while the context lasts, and restore it afterwards.

    Yields False, with nothing changed, when this kernel lacks the setting or refuses the value.
    """
    try:
        before = path.read_text()
        path.write_text(value)
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        path.write_text(before)


def power_off() -> None:
    """Switch the machine off at once; the caller has synced what matters. HostError when it stays on."""
    _reboot(_CMD_POWER_OFF)
    raise HostError("the machine did not power off (is ACPI in the kernel?)")


def halt() -> None:
    """Halt the machine without switching it off; its screen keeps its contents. HostError when it goes on."""
    _reboot(_CMD_HALT)
    raise HostError("the machine did not halt")


def restart() -> None:
    """Restart the machine at once, through its firmware. HostError when it goes on."""
    _reboot(_CMD_RESTART)
    raise HostError("the machine did not restart")


class SystemCalls:
    """The loader of a kernel that was built with CONFIG_KEXEC_JUMP; implements `kexec.loader.Loader`."""

    max_segments = SEGMENT_MAX
    share_of_ram = 0.5
    """Linux refuses segments that take more (sanity_check_segment_list in kernel/kexec_core.c)."""
    gate_restores_gdt = True

    def load(self, plan: Plan) -> None:
        """Load `plan`; see the function `load`."""
        load(plan)

    def unload(self, flags: int) -> None:
        """Unload the image; see the function `unload`."""
        unload(flags)

    def is_loaded(self, *, on_crash: bool = False) -> bool:
        """Tell whether an image is loaded; see the function `is_loaded`."""
        return is_loaded(on_crash=on_crash)

    def image_list_head(self, kcore: Kcore) -> int:
        """Return `kexec_image->head`, found by the running kernel's symbol; HostError if nothing is loaded."""
        from kjump.host import kernel_memory  # imported here: PID 1 opens its way back without it

        return kernel_memory.image_list_head(kcore)

    def jump(self) -> None:
        """Enter the loaded image; see the function `jump`."""
        jump()

    def power_off(self) -> None:
        """Switch the machine off; see the function `power_off`."""
        power_off()

    def restart(self) -> None:
        """Restart the machine; see the function `restart`."""
        restart()

    def halt(self) -> None:
        """Halt the machine; see the function `halt`."""
        halt()
