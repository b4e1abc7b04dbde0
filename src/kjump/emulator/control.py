"""The layout of the emulated kernel's control page, shared with its control code (control64.S, control32.S).

All fields are u64, on i386 too, but the entries of the indirection list are words of the architecture. The build makes
control.h from this.
"""

from __future__ import annotations

from kjump.kexec.kimage import IND_DESTINATION, IND_DONE, IND_INDIRECTION, IND_SOURCE
from kjump.layout import Field, Layout, Numbers, header
from kjump.memory import PAGE_SIZE

CODE = Numbers(
    "CONTROL",
    ("PAGE_SIZE", PAGE_SIZE, ""),
    ("RELOCATE", 0x10, "the kernel calls this; what returns to an i386 kernel enters at 0"),
    ("STACK", PAGE_SIZE, "the upper end of the stack"),
)
FLAGS = Numbers(
    "CONTROL_FLAG",
    ("PRESERVE", 1, "swap, call and come back; else copy, jump and forget"),
    ("PUSH_START", 2, "x86_64 from 6.14 on: the stack begins with the start address"),
    ("SS_FIRST", 4, "x86_64 before 6.13: SS is loaded again before GDTR"),
)
CONTROL = Layout(
    "CONTROL",
    Field("virtual", "linear address of this page in the kernel; from here to PHYSICAL filled in before a jump"),
    Field("tables", "root of page tables that map memory to itself, and this page at both places"),
    Field("swap_page", "three copies make a swap: this is the third place; then it is the callee's stack"),
    Field("head", "first entry of the indirection list"),
    Field("start", "where to jump; after a return, where to jump next time"),
    Field("flags", "CONTROL_FLAG_*"),
    Field("physical", "physical address of this page"),
    Field("sp", "kept by the control code itself, as what follows", at=0x840),
    Field("cr0"),
    Field("cr3"),
    Field("cr4"),
    Field("gdt", "ten bytes, the limit at +6 so that the base is aligned", "16s", at=0x868),
    Field("idt", "the same", "16s"),
    start=0x800,
)
LIST_ENTRIES = Numbers(
    "IND",
    ("DESTINATION", IND_DESTINATION, ""),
    ("INDIRECTION", IND_INDIRECTION, ""),
    ("DONE", IND_DONE, ""),
    ("SOURCE", IND_SOURCE, ""),
)
SELECTORS = Numbers("KERNEL", ("CS", 0x10, ""), ("DS", 0x18, ""), ("CS_32", 0x60, ""), ("DS_32", 0x68, ""))
A_NUMBERS = Numbers("A", ("STOP", 0x40, "where the code of A (a64.S, a32.S) comes to rest"))


def headers() -> dict[str, str]:
    """Return the text of the header, by file name."""
    note = "The emulated kernel's control page: entries, flags and fields."
    return {"control.h": header("control.h", note, (CODE, FLAGS, CONTROL, LIST_ENTRIES, SELECTORS, A_NUMBERS))}
