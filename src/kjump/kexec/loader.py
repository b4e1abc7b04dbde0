"""Who loads Plans and jumps: the one interface behind which the kernel's system calls stand.

Everything above asks for the loader in use by `current()` and calls its methods; it does not know which one it is.
What differs between loaders is a property of the loader. `used` puts another one in place for a while: a simulated
machine in tests.
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
    """Loads a Plan into the running kernel, and leaves this kernel. The methods raise HostError when refused."""

    @property
    def max_segments(self) -> int:
        """How many segments a Plan may have."""
        ...

    @property
    def share_of_ram(self) -> float:
        """How much of RAM all segments of a Plan may take together, as a share of it."""
        ...

    @property
    def gate_restores_gdt(self) -> bool:
        """Whether the gate must load this kernel's own descriptor table before it returns (kernels before 6.13)."""
        ...

    def load(self, plan: Plan) -> None:
        """Load `plan`; with ON_CRASH in its flags into the crash slot."""
        ...

    def unload(self, flags: int) -> None:
        """Drop what is loaded for `flags` (the architecture, and ON_CRASH for the crash slot)."""
        ...

    def is_loaded(self, *, on_crash: bool = False) -> bool:
        """Tell whether something is loaded (in the crash slot with `on_crash`)."""
        ...

    def image_list_head(self, kcore: Kcore) -> int:
        """Return the head of the list of pages of what is loaded: an entry as `kexec.kimage` reads it."""
        ...

    def jump(self) -> None:
        """Execute what is loaded; with preserved context this returns when the other side comes back."""
        ...

    def power_off(self) -> None:
        """Switch the machine off at once; raises when it stays on."""
        ...

    def restart(self) -> None:
        """Restart the machine at once, through its firmware; raises when nothing happens."""
        ...

    def halt(self) -> None:
        """Stop the machine, its power on, so that what is on the screen can be read; raises when it goes on."""
        ...


_current: Loader = SystemCalls()


def current() -> Loader:
    """Return the loader in use."""
    return _current


@contextlib.contextmanager
def used(loader: Loader) -> Iterator[None]:
    """Have `loader` in use while the context lasts; for all threads."""
    global _current
    before, _current = _current, loader
    try:
        yield
    finally:
        _current = before
