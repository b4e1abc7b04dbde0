"""Reports on a program that did not come back: where it was, the memory it used, its last branches."""

from __future__ import annotations

import struct
from typing import Protocol

from kjump.call.machine import describe_exception
from kjump.call.program import Arch
from kjump.emulator.cpu import Access, Cpu
from kjump.emulator.kimage import Image
from kjump.emulator.ram import Ram
from kjump.errors import FormatError, JumpError
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range

OUT, PROGRAM, BACK = "on the way to the program", "in the program", "on the way back"
"""The places at which a machine can stop, as a report names them."""

_LINES = 6
_ACCESSED_DIRTY = 0x60


class Observed(Protocol):
    """What a report needs of the emulated machine (`emulator.linux.EmulatedLinux`).

    `tables_before` maps the physical address of each page of A's page tables to its contents before the jump; `last` is
    the image that was entered last; `time_limit` is in seconds.
    """

    arch: Arch
    cpu: Cpu
    ram: Ram
    access: Access
    tables_before: dict[int, bytes]
    last: Image | None

    @property
    def time_limit(self) -> float:
        """The seconds after which a program is stopped."""

    def virtual(self, physical: int) -> int:
        """Return the linear address at which A sees physical memory."""


class WildError(JumpError):
    """The emulated machine is lost: the program faulted or did not come back. `details` are lines to print."""

    def __init__(self, text: str, details: list[str]) -> None:
        """Take the sentence and the lines."""
        super().__init__(text)
        self.details = details


def wild(linux: Observed, where: str) -> WildError:
    """Return the error for the state in which the CPU has stopped; `where` is what it was doing."""
    why = _tables(linux) if where == BACK else ""
    return WildError(f"{where} {_what(linux)} at {linux.cpu.pc:#x}{why}", _details(linux))


def _what(linux: Observed) -> str:
    cpu = linux.cpu
    if cpu.no_memory is not None:
        kind, address = cpu.no_memory
        return f"the machine tried to {kind} at {address:#x}, where there is no memory,"
    if cpu.exception == 14:
        return f"the machine took a {describe_exception(14)} for address {int(cpu.get('CR2')):#x}"
    if cpu.exception is not None:
        return f"the machine took a {describe_exception(cpu.exception)}"
    if cpu.timed_out:
        return f"the machine did not come back within {linux.time_limit:g} s; it was"
    return "the machine halted"


def _tables(linux: Observed) -> str:
    """Describe the page of A's page tables that has changed, because of which A cannot go on; empty if none has."""
    for page, before in linux.tables_before.items():
        now = linux.ram.read(page, PAGE_SIZE)
        if any((a ^ b) & ~_ACCESSED_DIRTY for a, b in zip(_words(now), _words(before), strict=True)):
            writer = linux.access.written.get(page)
            return (
                f": the program wrote the caller's page tables at {page:#x}{f' (from {writer:#x})' if writer else ''}"
            )
    return ""


def _words(page: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{PAGE_SIZE // 4}I", page)


def _details(linux: Observed) -> list[str]:
    registers, pc = linux.cpu.general(), linux.cpu.pc
    width = 16 if linux.arch is Arch.X86_64 else 8
    words = [f"{name:>3} {value:0{width}x}" for name, value in registers.items()]
    words += [f"{name} {int(linux.cpu.get(name)):x}" for name in ("CR0", "CR2", "CR3", "CR4", "EFLAGS")]
    lines = ["registers:", *("  " + "  ".join(words[i : i + 4]) for i in range(0, len(words), 4))]
    lines += ["code:", *(f"  {line}" for line in disassemble(linux, pc, code_at(linux, pc), _LINES))]
    if linux.cpu.branches:
        lines += ["last branches, the latest at the end:"]
        lines += ["  " + " ".join(f"{b:#x}" for b in linux.cpu.branches)]
    return lines


def code_at(linux: Observed, address: int) -> bytes:
    """Return up to a hundred bytes at a physical address, or at a linear address of A's kernel."""
    base = linux.virtual(0)
    physical = address - base if address >= base else address
    try:
        return linux.ram.read(physical, min(100, linux.ram.size - physical))
    except FormatError:
        return b""


def disassemble(linux: Observed, address: int, code: bytes, count: int) -> list[str]:
    """Return at most `count` instructions of `code`, which lies at `address`, as text."""
    import capstone

    mode = capstone.CS_MODE_64 if linux.arch is Arch.X86_64 else capstone.CS_MODE_32
    found = [
        f"{i.address:#x}: {i.mnemonic} {i.op_str}".rstrip()
        for i in capstone.Cs(capstone.CS_ARCH_X86, mode).disasm(code, address, count)
    ]
    return found or [f"{address:#x}: {code[:8].hex(' ') or 'no memory'} (not an instruction)"]


def memory_map(linux: Observed) -> list[str]:
    """Return the ranges of physical pages that the last program read and wrote, as lines."""
    access = linux.access
    kinds = {p: f"{'r' if p in access.read else '-'}{'w' if p in access.written else '-'}" for p in access.pages}
    runs: list[tuple[str, Range]] = []
    for page in sorted(kinds):
        note = f"{kinds[page]}{_owner(linux, page)}"
        if runs and runs[-1][0] == note and runs[-1][1].end == page:
            runs[-1] = (note, Range(runs[-1][1].start, page + PAGE_SIZE))
        else:
            runs.append((note, Range.of_size(page, PAGE_SIZE)))
    return [f"{area.start:#010x}-{area.end - 1:#010x} {note}" for note, area in runs]


def _owner(linux: Observed, page: int) -> str:
    image = linux.last
    if image is None:
        return ""
    for segment in image.plan.segments:
        if page in segment.range:
            return f" {segment.name}"
    if page == image.swap:
        return " the kernel's stack (swap page)"
    return ""
