"""Delivery of exceptions: unicorn stops at an exception, and this module enters the handler as a CPU does.

Source: Intel SDM volume 3, chapter 6 (interrupt and exception handling). Unicorn does not report error codes; they are
pushed as 0. Only handlers at the same privilege level and without a stack of their own (IST) are supported, which is
what kjump's shims have.
"""

from __future__ import annotations

from kjump.call.program import Arch
from kjump.emulator.cpu import Cpu
from kjump.emulator.ram import Ram
from kjump.errors import FormatError

_WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17, 21, 29, 30})
_PRESENT = 0x80
_INTERRUPT_FLAG = 0x200


def deliver(cpu: Cpu, ram: Ram) -> bool:
    """Enter the handler of the exception that `cpu` has stopped at; tell whether there is one.

    The page tables in force must map memory to itself, or be off.
    """
    vector = cpu.exception
    if vector is None:
        return False
    _, table, limit, _ = cpu.get("IDTR")
    size = 16 if cpu.arch is Arch.X86_64 else 8
    if (vector + 1) * size > limit + 1:
        return False
    try:
        gate = ram.read(table + vector * size, size)
        if not gate[5] & _PRESENT:
            return False
        _push_frame(cpu, ram, vector)
    except FormatError:
        return False
    handler = int.from_bytes(gate[:2] + gate[6:8] + (gate[8:12] if size == 16 else b""), "little")
    cpu.set("EFLAGS", int(cpu.get("EFLAGS")) & ~_INTERRUPT_FLAG)
    cpu.pc = handler
    return True


def _push_frame(cpu: Cpu, ram: Ram, vector: int) -> None:
    """Push the exception frame; on x86_64 the stack is aligned, and the old SS and RSP are pushed too."""
    word = cpu.arch.bits // 8
    frame = [int(cpu.get("EFLAGS")), int(cpu.get("CS")), cpu.pc]
    sp = cpu.sp
    if cpu.arch is Arch.X86_64:
        frame = [int(cpu.get("SS")), sp, *frame]
        sp &= ~15
    if vector in _WITH_ERROR_CODE:
        frame.append(0)
    for value in frame:
        sp -= word
        ram.put_word(sp, value, word)
    cpu.sp = sp
