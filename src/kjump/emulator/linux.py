"""The emulated Linux A: the parts of a kernel that a kexec jump needs, in the emulated machine's memory.

It has page tables, a GDT, a stack, registers with known values, and control code (control64.S, control32.S). Around a
jump it does what the protocol (docs/protocol.md) requires of the caller: load the image, save the CPU state, swap,
call, swap back, restore. `control.py` has the layout of its control page.
"""

from __future__ import annotations

import errno
import hashlib
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

from kjump.call.program import Arch
from kjump.emulator import report
from kjump.emulator.control import A_NUMBERS, CODE, CONTROL, FLAGS
from kjump.emulator.cpu import CR4_CET, Access, Cpu
from kjump.emulator.exceptions import deliver
from kjump.emulator.kimage import Builder, Image, Pages, check
from kjump.emulator.ram import Ram
from kjump.errors import UsageError
from kjump.kexec.plan import ON_CRASH, Plan
from kjump.kexec.refusals import refused_jump, refused_load
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

_RELOCATE = CODE["RELOCATE"]
_FIELDS_AT = CONTROL.offset("virtual")
_FIELDS = CONTROL.struct(last="physical")
_START_AT = CONTROL.offset("start")
_A_STOP = A_NUMBERS["STOP"]
_FLAG_PRESERVE = FLAGS["PRESERVE"]
_FLAG_PUSH_START = FLAGS["PUSH_START"]
_FLAG_SS_FIRST = FLAGS["SS_FIRST"]
_PRESENT_WRITABLE = 0x3
_LARGE = 0x80
_DIRECT_MAP = {Arch.X86_64: 0xFFFF888000000000, Arch.I386: 0xC0000000}
_CONTROL_PAGES = 5
"""The number of control pages: the control page itself, and its page tables."""
_GDT_64 = (0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
_GDT_32 = (*[0] * 12, 0x00CF9B000000FFFF, 0x00CF93000000FFFF)
GDT_LIMIT = 0x7F


@dataclass(frozen=True)
class Kernel:
    """A kind of kernel: `push_start` and `ss_first` are the differences between x86_64 releases; see control.py."""

    name: str
    arch: Arch
    push_start: bool = False
    ss_first: bool = False

    @property
    def flags(self) -> int:
        """The flags of its control page."""
        return (_FLAG_PUSH_START if self.push_start else 0) | (_FLAG_SS_FIRST if self.ss_first else 0)


KERNELS = {
    k.name: k
    for k in (
        Kernel("6.14", Arch.X86_64, push_start=True),
        Kernel("6.12", Arch.X86_64),
        Kernel("6.1", Arch.X86_64, ss_first=True),
        Kernel("1.00", Arch.I386),
    )
}
"""6.14: pushes the start address first; 6.12: does not; 6.1: also loads SS before GDTR; 1.00: i386 protocol 1.00."""

DEFAULT_KERNEL = {Arch.X86_64: "6.12", Arch.I386: "1.00"}


@dataclass(frozen=True)
class Setup:
    """The configuration of the emulated machine: bytes of `memory`, kernel, order of its free pages, refusals.

    `without` names features that the kernel was built without ("kexec", "kexec_jump"); `refuses` names what refuses to
    be frozen or suspended ("task", "device"); `crash` is memory set aside for a crash image; with `filled` memory is
    filled with random bytes at the beginning. With `cet` a 64-bit kernel has CR4.CET set, as kernels with branch
    tracking or shadow stacks have.
    """

    kernel: Kernel
    memory: int = 64 << 20
    seed: int = 0
    privileged: bool = True
    without: frozenset[str] = frozenset()
    refuses: frozenset[str] = frozenset()
    crash: Range | None = None
    filled: bool = False
    cet: bool = True


@dataclass
class Watch:
    """What to record of programs: accesses to memory, branches, a trace; and the time limit of a program in seconds."""

    access: bool = False
    branches: bool = True
    trace: bool = False
    time_limit: float = 10.0


@dataclass
class JumpTimes:
    """Seconds that the parts of a jump took: from A to the program, in it, and back."""

    out: float = 0.0
    program: float = 0.0
    back: float = 0.0


@dataclass
class EmulatedLinux:
    """The emulated kernel A between jumps.

    `lost` is set when a program has not come back. Of the last program `access` and `trace` are the recorded accesses
    and instructions, `report` describes the exception that ended it, `times` has the durations of the jump's parts.
    """

    setup: Setup
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        """Set the machine up; UsageError when its memory sizes are invalid."""
        if self.setup.memory % (4 << 20) or not 8 << 20 <= self.setup.memory <= 512 << 20:
            raise UsageError("the emulated machine has from 8 to 512 MiB of memory, in steps of 4 MiB")
        self.arch = self.setup.kernel.arch
        self.ram = Ram(self.setup.memory)
        if self.setup.filled:
            self.ram.write(0, hashlib.shake_128(b"%d" % self.setup.seed).digest(self.ram.size))
        reserved = RangeSet([self.setup.crash] if self.setup.crash else [])
        self.pages = Pages(self.ram.usable - reserved, self.setup.seed)
        self.cpu = Cpu(self.arch, self.ram)
        self.image: Image | None = None
        self.crash_image: Image | None = None
        self.busy = self.lost = False
        self.access = Access()
        self.trace: list[tuple[int, bytes]] = []
        self.report: list[str] = []
        self.tables_before: dict[int, bytes] = {}
        self.last: Image | None = None
        self.times = JumpTimes()
        self._text, self.stack, self._gdt = (self._own_page() for _ in range(3))
        self.tables = [self._own_page() for _ in range(3)]
        self._set_up_a()

    def _own_page(self) -> int:
        page = self.pages.take()
        assert page is not None
        self.ram.write(page, bytes(PAGE_SIZE))
        return page

    def virtual(self, physical: int) -> int:
        """Return the linear address at which A sees physical memory."""
        return _DIRECT_MAP[self.arch] + physical

    @property
    def time_limit(self) -> float:
        """The seconds after which a program is stopped."""
        return self.watch.time_limit

    @property
    def gdt(self) -> int:
        """The linear address of A's GDT."""
        return self.virtual(self._gdt)

    def _code(self, name: str) -> bytes:
        return (Path(__file__).parent / f"{name}{self.arch.bits}.bin").read_bytes()

    def _set_up_a(self) -> None:
        self.ram.write(self._text, self._code("a"))
        gdt = _GDT_64 if self.arch is Arch.X86_64 else _GDT_32
        self.ram.write(self._gdt, struct.pack(f"<{len(gdt)}Q", *gdt))
        if self.arch is Arch.X86_64:
            if self.setup.cet:
                self.cpu.give_cet()
            self._tables_64(self.tables, identity=False)
            self.cpu.set("CR3", self.tables[0])
            self.cpu.set_long_mode()
            self.cpu.set("CR0", 0x80050033)
            self.cpu.set("CR4", 0x620 | (CR4_CET if self.setup.cet else 0))  # PAE, OSFXSR, OSXMMEXCPT
        else:
            self._tables_32_large(self.tables[0])
            self.cpu.set("CR4", 0x610)  # PSE, OSFXSR, OSXMMEXCPT
            self.cpu.set("CR3", self.tables[0])
            self.cpu.set("CR0", 0x80050033)
        self.cpu.set("GDTR", (0, self.gdt, GDT_LIMIT, 0))
        self.cpu.set("IDTR", (0, self.virtual(self._gdt) + 0x800, 0xFF, 0))

    def _tables_64(self, pages: list[int], *, identity: bool) -> None:
        """Map all memory in the direct map, with 2 MiB pages; with `identity` also at its physical address."""
        top, middle, leaves = pages
        for page in pages:
            self.ram.write(page, bytes(PAGE_SIZE))
        index = (_DIRECT_MAP[Arch.X86_64] >> 39) & 511
        for slot in (index, 0) if identity else (index,):
            self.ram.put_word(top + 8 * slot, middle | _PRESENT_WRITABLE)
        self.ram.put_word(middle, leaves | _PRESENT_WRITABLE)
        for i in range(self.ram.size >> 21):
            self.ram.put_word(leaves + 8 * i, i << 21 | _LARGE | _PRESENT_WRITABLE)

    def _tables_32_large(self, page: int) -> None:
        first = _DIRECT_MAP[Arch.I386] >> 22
        for i in range(self.ram.size >> 22):
            self.ram.put_word(page + 4 * (first + i), i << 22 | _LARGE | _PRESENT_WRITABLE, 4)

    def _tables_32_control(self, pages: list[int], control: int) -> None:
        """Map the page `control` at its linear and physical address, with 4 KiB pages (CR4 is 0 at their use)."""
        top, *leaves = pages
        for page in pages:
            self.ram.write(page, bytes(PAGE_SIZE))
        for address, leaf in zip((self.virtual(control), control), leaves, strict=True):
            self.ram.put_word(top + 4 * (address >> 22), leaf | _PRESENT_WRITABLE, 4)
            self.ram.put_word(leaf + 4 * (address >> 12 & 1023), control | _PRESENT_WRITABLE, 4)

    def load(self, plan: Plan) -> None:
        """Load `plan` as kexec_load does; RefusedError with the error number."""
        if not self.setup.privileged:
            raise refused_load(errno.EPERM, str(plan))
        if "kexec" in self.setup.without:
            raise refused_load(errno.ENOSYS, str(plan))
        if self.busy:
            raise refused_load(errno.EBUSY, str(plan))
        if "kexec_jump" in self.setup.without and plan.preserves_context:
            raise refused_load(errno.EINVAL, str(plan))
        check(plan, self.ram.usable.size, self.arch.flag, self.setup.crash)
        self.unload(plan.flags)
        built = Builder(plan, self.ram, self.pages).build(_CONTROL_PAGES - 1)
        self._write_control(built)
        if plan.flags & ON_CRASH:
            self.crash_image = built
        else:
            self.image = built

    def unload(self, flags: int) -> None:
        """Drop the image, or the crash image, and free its pages."""
        image = self.crash_image if flags & ON_CRASH else self.image
        if image is not None:
            self.pages.give([p for p in image.pages if p])
        if flags & ON_CRASH:
            self.crash_image = None
        else:
            self.image = None

    def _write_control(self, image: Image) -> None:
        control, *tables = image.control
        if self.arch is Arch.X86_64:
            self._tables_64(tables, identity=True)
        else:
            self._tables_32_control(tables, control)
        flags = self.setup.kernel.flags | (_FLAG_PRESERVE if image.plan.preserves_context else 0)
        fields = (self.virtual(control), tables[0], image.swap, image.head, image.start, flags, control)
        self.ram.write(control, self._code("control").ljust(PAGE_SIZE, b"\0"))
        self.ram.write(control + _FIELDS_AT, _FIELDS.pack(*fields))

    def jump(self) -> None:
        """Jump as reboot(LINUX_REBOOT_CMD_KEXEC) does; WildError when the program does not come back."""
        if not self.setup.privileged:
            raise refused_jump(errno.EPERM)
        if self.busy:
            raise refused_jump(errno.EBUSY)
        if "kexec" in self.setup.without:
            raise refused_jump(errno.ENOSYS)
        if self.image is None:
            raise refused_jump(errno.EINVAL)
        if self.lost:
            raise UsageError("the emulated machine was lost to the last program: make a new one")
        self.busy = True
        try:
            if "task" in self.setup.refuses:
                raise refused_jump(errno.EBUSY)
            if "device" in self.setup.refuses:
                raise refused_jump(errno.EIO)
            self._run(self.image)
        except report.WildError:
            self.lost = True
            raise
        finally:
            self.busy = False

    def crash(self) -> None:
        """Enter the crash image, which does not come back; raises WildError, with the place where it stopped."""
        if self.crash_image is None:
            raise refused_jump(errno.EINVAL)
        self._run(self.crash_image)

    def _run(self, image: Image) -> None:
        self.last = image
        self.tables_before = {page: self.ram.read(page, PAGE_SIZE) for page in self.tables}
        control = image.control[0]
        self.ram.put_word(control + _START_AT, image.start)
        self.access = Access()
        self.trace.clear()
        self.report = []
        self.cpu.flush()
        self.cpu.set("RDX" if self.arch is Arch.X86_64 else "EDX", self.virtual(control + _RELOCATE))
        self.cpu.sp = self.virtual(self.stack + PAGE_SIZE)
        stop = self.virtual(self._text + _A_STOP)
        begun = time.perf_counter()
        self._phase(report.OUT, self.virtual(self._text), [image.start])
        entered = time.perf_counter()
        self._program()
        left = time.perf_counter()
        self._phase(report.BACK, self.cpu.pc, [stop])
        self.times = JumpTimes(entered - begun, left - entered, time.perf_counter() - left)
        image.start = int(self.cpu.get("RAX" if self.arch is Arch.X86_64 else "EAX"))

    def _phase(self, where: str, start: int, until: list[int]) -> None:
        if not self.cpu.run(start, until, self.watch.time_limit):
            raise report.wild(self, where)

    def _program(self) -> None:
        """Run the program until it comes back to the control code, at either of its entries.

        The first exception is delivered to the program's handler, which the shim sets up; a second one ends the run.
        """
        size = self.arch.bits // 8
        until = [self.ram.word(self.cpu.sp, size)]
        if self.arch is Arch.I386:
            until.append(int(self.cpu.get("EDI")))
        watch = self.watch
        trace = self._note_instruction if watch.trace else None
        self.cpu.watch(self.access if watch.access else None, branches=watch.branches, trace=trace)
        try:
            while not self.cpu.run(self.cpu.pc, until, self.watch.time_limit):
                error = report.wild(self, report.PROGRAM)
                if self.report or not deliver(self.cpu, self.ram):
                    raise error
                self.report = error.details
        finally:
            self.cpu.unwatch()

    def _note_instruction(self, address: int, size: int) -> None:
        # The code is copied now: programs run at physical addresses, from which the jump back removes it.
        self.trace.append((address, self.ram.read(address, size)))
