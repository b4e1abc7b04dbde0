"""The emulated CPU: unicorn with the machine's memory, a serial port, and the records for a report."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from unicorn import (
    UC_ARCH_X86,
    UC_ERR_INSN_INVALID,
    UC_HOOK_BLOCK,
    UC_HOOK_CODE,
    UC_HOOK_EDGE_GENERATED,
    UC_HOOK_INSN,
    UC_HOOK_INTR,
    UC_HOOK_MEM_INVALID,
    UC_HOOK_MEM_READ,
    UC_HOOK_MEM_WRITE,
    UC_MEM_WRITE,
    UC_MEM_WRITE_UNMAPPED,
    UC_MODE_32,
    UC_MODE_64,
    UC_PROT_ALL,
    UC_QUERY_TIMEOUT,
    Uc,
    UcError,
    x86_const,
)

from kjump.call.program import Arch
from kjump.emulator.ram import Ram
from kjump.memory import PAGE_SIZE

_SERIAL = range(0x3F8, 0x400)
_LINE_STATUS_IDLE = 0x60
_MSR_EFER = 0xC0000080
_BRANCHES = 16
_CPUID_FEATURES = 7
_CPUID_ECX_SHSTK = 1 << 7
_CPUID_EDX_IBT = 1 << 20
_INVALID_INSTRUCTION = 6
_GENERAL_PROTECTION = 13
_MOVE_TO_CONTROL = 3
"""The length in bytes of a MOV to a control register from one of the first eight general registers."""
CR0_WP = 1 << 16
CR4_CET = 1 << 23

GENERAL = {
    Arch.X86_64: (
        "RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "RSP",
        "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15", "RIP",
    ),
    Arch.I386: ("EAX", "EBX", "ECX", "EDX", "ESI", "EDI", "EBP", "ESP", "EIP"),
}  # fmt: skip
CONTROL = ("CR0", "CR2", "CR3", "CR4", "EFLAGS")
SEGMENTS = ("CS", "DS", "ES", "FS", "GS", "SS")


def _allowed(control: tuple[int, int]) -> bool:
    cr0, cr4 = control
    return not cr4 & CR4_CET or bool(cr0 & CR0_WP)


def _number(name: str) -> int:
    return int(getattr(x86_const, f"UC_X86_REG_{name}"))


class Access:
    """A program's accesses to memory: the pages read and written, and the address of the first write to each page."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.read: set[int] = set()
        self.written: dict[int, int] = {}

    @property
    def pages(self) -> set[int]:
        """All pages read or written."""
        return self.read | self.written.keys()


class Cpu:
    """One CPU. Registers are read and written by name, as RAX or XMM0.

    Unicorn stores CR4.CET without checking it. This class checks the rule that matters to a jump: CR4.CET cannot be set
    while CR0.WP is clear, and an instruction that would do so is a general protection fault (Intel SDM volume 2, MOV to
    control registers; AMD APM volume 2, 3.1.3). A violation is noticed when code runs for the first time since `flush`,
    and at the end of a run. With CET on, shadow stacks and branch tracking themselves are not emulated.
    """

    def __init__(self, arch: Arch, ram: Ram) -> None:
        """Make a CPU whose physical memory is `ram`."""
        self.arch = arch
        self._uc: Any = Uc(UC_ARCH_X86, UC_MODE_64 if arch is Arch.X86_64 else UC_MODE_32)
        if arch is Arch.X86_64:
            self._uc.ctl_set_cpu_model(x86_const.UC_CPU_X86_SKYLAKE_SERVER)  # has pages of 1 GiB
        self._uc.mem_map_ptr(0, ram.size, UC_PROT_ALL, ram.pointer)
        self._uc.hook_add(UC_HOOK_INTR, self._on_exception)
        self._uc.hook_add(UC_HOOK_EDGE_GENERATED, self._on_new_block)
        self._uc.hook_add(UC_HOOK_MEM_INVALID, self._on_no_memory)
        for instruction, callback in (("OUT", self._on_out), ("IN", self._on_in)):
            number = getattr(x86_const, f"UC_X86_INS_{instruction}")
            self._uc.hook_add(UC_HOOK_INSN, callback, None, 1, 0, number)
        self.serial = bytearray()
        self.exception: int | None = None
        self.no_memory: tuple[str, int] | None = None
        self.timed_out = False
        self.branches: deque[int] = deque(maxlen=_BRANCHES)
        self._control = (0, 0)
        self._forbidden: int | None = None
        self._features: tuple[int, ...] = ()
        self._watches: list[int] = []

    def get(self, name: str) -> Any:
        """Return register `name`."""
        return self._uc.reg_read(_number(name))

    def set(self, name: str, value: Any) -> None:
        """Set register `name`."""
        self._uc.reg_write(_number(name), value)

    @property
    def pc(self) -> int:
        """The instruction pointer."""
        return int(self.get("RIP" if self.arch is Arch.X86_64 else "EIP"))

    @pc.setter
    def pc(self, value: int) -> None:
        self.set("RIP" if self.arch is Arch.X86_64 else "EIP", value)

    @property
    def sp(self) -> int:
        """The stack pointer."""
        return int(self.get("RSP" if self.arch is Arch.X86_64 else "ESP"))

    @sp.setter
    def sp(self, value: int) -> None:
        self.set("RSP" if self.arch is Arch.X86_64 else "ESP", value)

    def get_msr(self, number: int) -> int:
        """Return the model-specific register `number`; 0 if unicorn does not have it."""
        return int(self._uc.reg_read(x86_const.UC_X86_REG_MSR, number))

    def set_long_mode(self) -> None:
        """Set EFER as a 64-bit kernel has it: system calls, long mode enabled and active, no-execute."""
        self._uc.reg_write(x86_const.UC_X86_REG_MSR, (_MSR_EFER, 0xD01))

    def give_cet(self) -> None:
        """Let CPUID report shadow stacks and branch tracking."""
        at, code = 0, b"\x0f\xa2"  # cpuid
        before = bytes(self._uc.mem_read(at, len(code)))
        self._uc.mem_write(at, code)
        self.set("EAX", _CPUID_FEATURES)
        self.set("ECX", 0)
        self._uc.emu_start(at, at + len(code))
        self._features = tuple(int(self.get(name)) for name in ("EAX", "EBX", "ECX", "EDX"))
        self._uc.mem_write(at, before)
        self._uc.hook_add(UC_HOOK_INSN, self._on_cpuid, None, 1, 0, x86_const.UC_X86_INS_CPUID)

    def _on_cpuid(self, _: Any, data: object) -> bool:
        if (int(self.get("EAX")), int(self.get("ECX"))) != (_CPUID_FEATURES, 0):
            return False
        eax, ebx, ecx, edx = self._features
        values = (eax, ebx, ecx | _CPUID_ECX_SHSTK, edx | _CPUID_EDX_IBT)
        for name, value in zip(("RAX", "RBX", "RCX", "RDX"), values, strict=True):
            self.set(name, value)
        return True

    def general(self) -> dict[str, int]:
        """Return the general registers by name."""
        return {name: int(self.get(name)) for name in GENERAL[self.arch]}

    def flush(self) -> None:
        """Drop cached address translations and code, after page tables or code were changed from outside."""
        self._uc.ctl_flush_tb()
        self.set("CR3", self.get("CR3"))

    def run(self, start: int, until: Iterable[int], time_limit: float) -> bool:
        """Run from `start` to one of the addresses `until`; tell whether one was reached.

        If not, `exception`, `no_memory` or `timed_out` (after `time_limit` seconds) is set; with none of them the CPU
        halted.
        """
        self.exception = self.no_memory = None
        self.timed_out = False
        self._forbidden = None
        self._control = self._read_control()
        ends = list(until)
        self._uc.ctl_exits_enabled(True)
        self._uc.ctl_set_exits(ends)
        try:
            self._uc.emu_start(start, 0, timeout=max(1, int(time_limit * 1e6)))
        except UcError as error:
            if error.errno == UC_ERR_INSN_INVALID:
                self.exception = _INVALID_INSTRUCTION
            return False
        if self._forbidden is None and not _allowed(self._read_control()):
            self._forbidden = self.pc
        if self._forbidden is not None:
            self._undo_control(self._forbidden)
            return False
        self.timed_out = bool(self._uc.query(UC_QUERY_TIMEOUT))
        return self.exception is None and self.pc in ends

    def watch(self, access: Access | None, *, branches: bool, trace: Callable[[int, int], None] | None) -> None:
        """Until `unwatch`: record `access` by physical page, keep the last branches, call `trace(address, size)`."""
        if access is not None:
            kinds = UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE
            self._watches.append(self._uc.hook_add(kinds, self._on_access, access))
        if branches:
            self.branches.clear()
            self._watches.append(self._uc.hook_add(UC_HOOK_BLOCK, self._on_block))
        if trace is not None:
            self._watches.append(self._uc.hook_add(UC_HOOK_CODE, self._on_code, trace))

    def unwatch(self) -> None:
        """End what `watch` began."""
        for handle in self._watches:
            self._uc.hook_del(handle)
        self._watches.clear()

    def _on_exception(self, uc: Any, vector: int, _: object) -> None:
        self.exception = vector
        uc.emu_stop()

    def _on_no_memory(self, _: Any, kind: int, address: int, size: int, value: int, data: object) -> bool:
        self.no_memory = ("write" if kind in (UC_MEM_WRITE, UC_MEM_WRITE_UNMAPPED) else "read", address)
        return False

    def _on_access(self, _: Any, kind: int, address: int, size: int, value: int, access: Access) -> None:
        page = address & ~(PAGE_SIZE - 1)
        if kind != UC_MEM_WRITE:
            access.read.add(page)
        elif page not in access.written:
            access.written[page] = self.pc
        if address + size > page + PAGE_SIZE and kind == UC_MEM_WRITE:
            access.written.setdefault(page + PAGE_SIZE, self.pc)

    def _on_block(self, _: Any, address: int, size: int, data: object) -> None:
        if not self.branches or self.branches[-1] != address:
            self.branches.append(address)

    def _on_new_block(self, uc: Any, block: Any, before: Any, data: object) -> None:
        # An instruction that changes a control register ends its block, so its effect is checked when the next one
        # begins.
        control = self._read_control()
        if _allowed(control):
            self._control = control
        elif self._forbidden is None:
            self._forbidden = before.pc + before.size - _MOVE_TO_CONTROL
            uc.emu_stop()

    def _read_control(self) -> tuple[int, int]:
        return int(self.get("CR0")), int(self.get("CR4"))

    def _undo_control(self, address: int) -> None:
        """Undo the instruction at `address` as a fault does: its effect is reverted, and it is the next to execute."""
        self.exception = _GENERAL_PROTECTION
        for name, value in zip(("CR0", "CR4"), self._control, strict=True):
            self.set(name, value)
        self.pc = address

    def _on_code(self, _: Any, address: int, size: int, trace: Callable[[int, int], None]) -> None:
        trace(address, size)

    def _on_out(self, _: Any, port: int, size: int, value: int, data: object) -> None:
        if port == _SERIAL.start:
            self.serial.append(value & 0xFF)

    def _on_in(self, _: Any, port: int, size: int, data: object) -> int:
        if port == _SERIAL.start + 5:
            return _LINE_STATUS_IDLE
        return (1 << 8 * size) - 1
