"""The interface for loading Plans and jumping, which hides the kernel's system calls.

Callers take the loader in use from `current()`. Differences between loaders are properties of the loader. `used`
replaces the loader for the time of a context; tests put a simulated machine there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from kjump.kexec.plan import Plan
from kjump.kexec.syscalls import SystemCalls

if TYPE_CHECKING:
    from kjump.host.kernel_memory import Kcore


class Loader(Protocol):
    """Loads a Plan into the running kernel and jumps to it. The methods raise HostError when the kernel refuses."""

    @property
    def max_segments(self) -> int:
        """The largest number of segments in a Plan."""
        ...

    @property
    def share_of_ram(self) -> float:
        """The fraction of RAM that all segments of a Plan may take together."""
        ...

    @property
    def gate_restores_gdt(self) -> bool:
        """Whether the gate must load GDTR with this kernel's own table before it returns (kernels before 6.13)."""
        ...

    def load(self, plan: Plan) -> None:
        """Load `plan`, into the crash slot if its flags have ON_CRASH."""
        ...

    def unload(self, flags: int) -> None:
        """Unload the image for `flags` (the architecture, and ON_CRASH for the crash slot)."""
        ...

    def is_loaded(self, *, on_crash: bool = False) -> bool:
        """Tell whether an image is loaded (in the crash slot with `on_crash`)."""
        ...

    def image_list_head(self, kcore: Kcore) -> int:
        """Return the head of the loaded image's indirection list: an entry as `kexec.kimage` reads it."""
        ...

    def jump(self) -> None:
        """Enter the loaded image; with preserved context this returns when the other kernel or program comes back."""
        ...

    def power_off(self) -> None:
        """Switch the machine off at once; HostError when it stays on."""
        ...

    def restart(self) -> None:
        """Restart the machine at once, through its firmware; HostError when it goes on."""
        ...

    def halt(self) -> None:
        """Halt the machine without switching it off, so that its screen can be read; HostError when it goes on."""
        ...


_current: Loader = SystemCalls()


def current() -> Loader:
    """Return the loader in use."""
    return _current


@contextlib.contextmanager
def used(loader: Loader) -> Iterator[None]:
    """Use `loader`, in all threads, while the context lasts."""
    global _current
    before, _current = _current, loader
    try:
        yield
    finally:
        _current = before
