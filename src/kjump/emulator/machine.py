"""Calling programs on the emulated machine, with the same interface and Plans as on the real one."""

from __future__ import annotations

from dataclasses import dataclass

from kjump.call.machine import HeldMemory, Machine
from kjump.call.program import Arch, Surface
from kjump.emulator.linux import DEFAULT_KERNEL, GDT_LIMIT, KERNELS, EmulatedLinux, Setup, Watch
from kjump.errors import HostError, UsageError
from kjump.kexec.plan import Plan
from kjump.memory import PAGE_SIZE
from kjump.ranges import RangeSet


class EmulatedPages:
    """Pages of the emulated A."""

    def __init__(self, linux: EmulatedLinux, addresses: tuple[int, ...]) -> None:
        """Take the pages at `addresses`."""
        self._linux = linux
        self.addresses: tuple[int, ...] = addresses

    def write(self, index: int, data: bytes) -> None:
        """Put `data` at the beginning of page `index`."""
        self._linux.ram.write(self.addresses[index], data)

    def read(self, index: int, length: int = PAGE_SIZE) -> bytes:
        """Return the first `length` bytes of page `index`."""
        return self._linux.ram.read(self.addresses[index], length)

    def check(self) -> None:
        """Do nothing: the emulated kernel moves no pages."""

    def release(self) -> None:
        """Give the pages back."""
        self._linux.pages.give(list(self.addresses))
        self.addresses = ()


class _Held(HeldMemory):
    def __init__(self, linux: EmulatedLinux, address: int, count: int) -> None:
        self._linux = linux
        self._count = count
        self.address = address

    def release(self) -> None:
        self._linux.pages.give([self.address + i * PAGE_SIZE for i in range(self._count)])

    def write(self, offset: int, data: bytes) -> None:
        self._linux.ram.write(self.address + offset, data)


@dataclass(frozen=True)
class Difference:
    """The pages that differ before and after a jump, as physical addresses.

    `kernel`: control page, its tables, swap page, A's stack and page tables (accessed and dirty bits); `state`: source
    pages, which hold the program's state; `mailbox`; `program`: pages that the program wrote outside its segments;
    `unexplained`: all others, which must be empty.
    """

    kernel: list[int]
    state: list[int]
    mailbox: list[int]
    program: list[int]
    unexplained: list[int]


class EmulatedMachine(Machine):
    """An emulated machine; each instance has its own memory and kernel (`linux`)."""

    def __init__(self, setup: Setup | None = None, watch: Watch | None = None) -> None:
        """Set it up; by default x86_64, 64 MiB, a kernel as 6.12."""
        self.linux = EmulatedLinux(setup or Setup(KERNELS[DEFAULT_KERNEL[Arch.X86_64]]), watch or Watch())
        self._pinned: list[EmulatedPages] = []
        self._before = b""

    def surface(self) -> Surface:
        """Return what a gate must know of it."""
        linux = self.linux
        gdt = linux.gdt if linux.arch is Arch.X86_64 else 0
        return Surface(linux.ram.usable, 4 << 30, False, gdt, GDT_LIMIT)

    def pin(self, count: int, avoid: RangeSet) -> EmulatedPages:
        """Return pages of A; HostError when there are none outside `avoid`."""
        found: list[int] = []
        aside: list[int] = []
        while len(found) < count:
            page = self.linux.pages.take()
            if page is None:
                raise HostError("no page of memory outside the program could be had for the mailbox")
            (aside if page in avoid else found).append(page)
        self.linux.pages.give(aside)
        self._pinned.append(EmulatedPages(self.linux, tuple(found)))
        return self._pinned[-1]

    def hold(self, size: int) -> HeldMemory:
        """Return physically contiguous memory of A."""
        count = -(-size // PAGE_SIZE)
        address = self.linux.pages.take_run(count, self.linux.ram.usable)
        if address is None:
            raise HostError(f"no {size} bytes of the kernel's memory in one piece")
        return _Held(self.linux, address, count)

    def load_plan(self, plan: Plan) -> None:
        """Load `plan` as kexec_load does; UsageError when it is for another architecture."""
        if plan.flags & ~0xFFFF != self.linux.arch.flag:
            raise UsageError(f"the program is not for {self.linux.arch.label}, which this machine emulates")
        self.linux.load(plan)

    def jump(self) -> None:
        """Jump and come back; `difference` returns the changes of memory."""
        self._before = self.linux.ram.snapshot() if self.linux.watch.access else b""
        self.linux.jump()

    def report(self) -> list[str]:
        """Return registers, code and branches at the exception that ended the last program."""
        return self.linux.report

    def unload(self, plan: Plan) -> None:
        """Drop the image."""
        self.linux.unload(plan.flags)

    def difference(self) -> Difference:
        """Return the pages that the last jump changed (needs `Watch(access=True)`)."""
        linux, image = self.linux, self.linux.image
        assert self._before and image is not None
        kernel = {*image.control, image.swap, *linux.tables, linux.stack}
        state = set(image.pairs.values())
        mailbox = {page for pages in self._pinned for page in pages.addresses}
        written = {p for p in linux.access.written if p not in image.plan.destinations}
        sorted_into = Difference([], [], [], [], [])
        for page in linux.ram.differing_pages(self._before):
            if page in kernel:
                sorted_into.kernel.append(page)
            elif page in state:
                sorted_into.state.append(page)
            elif page in mailbox:
                sorted_into.mailbox.append(page)
            elif page in written:
                sorted_into.program.append(page)
            else:
                sorted_into.unexplained.append(page)
        return sorted_into
