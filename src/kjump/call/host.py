"""Calling programs on the running machine; needs root."""

from __future__ import annotations

import os
import platform

from kjump.call.machine import HeldMemory, Machine
from kjump.call.program import Surface
from kjump.errors import HostError
from kjump.gates import FLAG_INIT_CPUS
from kjump.host import kernel_memory, procfs
from kjump.host.locked_memory import HostPages, HugePage
from kjump.kexec import loader
from kjump.kexec.plan import Plan
from kjump.ranges import RangeSet


class _Held(HeldMemory):
    def __init__(self, size: int) -> None:
        self._page = HugePage()
        if size > self._page.size:
            raise HostError(f"{size} bytes of the kernel's memory in one piece: at most {self._page.size} can be had")
        self.address = self._page.address

    def write(self, offset: int, data: bytes) -> None:
        self._page.write(offset, data)

    def release(self) -> None:
        self._page.release()


class HostMachine(Machine):
    """The running kernel and its CPU."""

    def __init__(self) -> None:
        """Check that calls can work here; HostError, with nothing changed, when they cannot."""
        if os.geteuid() != 0:
            raise HostError("calling code on this machine needs root; `--on emulator` needs no privileges")
        if platform.machine() != "x86_64":
            raise HostError(f"kjump calls code on x86_64 kernels, not on {platform.machine()}; use `--on emulator`")

    def surface(self) -> Surface:
        """Return what a gate must know of this machine; HostError when the kernel hides addresses."""
        ram = procfs.ram()
        with kernel_memory.Kcore() as kcore:
            gdt, limit = kernel_memory.boot_cpu_gdt(kcore)
        _, flags = procfs.cpu_facts()
        end = max(4 << 30, *(r.end for r in ram))
        return Surface(ram, end, "pdpe1gb" in flags, gdt, limit, FLAG_INIT_CPUS)

    def pin(self, count: int, avoid: RangeSet) -> HostPages:
        """Return locked pages of this process."""
        return HostPages(count, avoid)

    def hold(self, size: int) -> HeldMemory:
        """Return a huge page of this process."""
        return _Held(size)

    def load_plan(self, plan: Plan) -> None:
        """Write out all files (sync), and load `plan` into the kernel."""
        os.sync()
        loader.current().load(plan)

    def jump(self) -> None:
        """Jump; the kernel freezes all other processes meanwhile."""
        loader.current().jump()

    def unload(self, plan: Plan) -> None:
        """Unload the kernel's image."""
        loader.current().unload(plan.flags & ~0xFFFF)
