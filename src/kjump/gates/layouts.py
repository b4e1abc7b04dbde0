"""The binary layouts that Python shares with the gates and programs; this file is their only definition.

The build makes gate.h, call.h and bios.h of it (build-aux/headers.py); a name there is the name here with its table's
prefix. Addresses are physical; a field is a little-endian u64 unless its entry says otherwise, on i386 too.
"""

from __future__ import annotations

from kjump.layout import Field, Layout, Numbers, c_struct, comment, header

GATE_NUMBERS = Numbers(
    "GATE",
    ("SIZE", 0x2000, "bytes of code, data and stack: two pages"),
    ("ENTRY", 0x000, "A's kernel comes in here, first time and again"),
    ("WAY_BACK", 0x010, "B's or C's kernel comes in here, to leave for A for good"),
    ("CRASH", 0x020, "B's kernel comes in here when it has panicked, on any of its CPUs"),
    ("SWITCH", 0x030, "B comes in here through its door, to leave for A and be re-entered later"),
    ("FIELDS_END", 0x180, "the gate's own data begins here"),
)
GATE_FLAGS = Numbers(
    "GATE_FLAG",
    ("INIT_CPUS", 1, "send INIT to all other CPUs before going on"),
    ("RESIDENT", 2, "the peer is there for every entry, not for the first alone: start it each time"),
    ("DESCRIPTORS", 4, "give A's segment registers, their bases, GDTR and IDTR back as they came in"),
    ("PAE", 8, "i386: A's page tables are PAE's, so CR4.PAE must be set before A turns paging on"),
    ("CHOOSE", 32, "the mailbox names the gate that A wants (MAILBOX_WANTED)"),
)
GATE_STATES = Numbers(
    "GATE_STATE",
    ("FRESH", 0, "not entered yet: the next entry starts the peer"),
    ("ENTERED", 1, "the peer runs, or has left for good: a further entry returns GONE"),
    ("PARKED", 2, "the peer has left by its door: the next entry re-enters it"),
)
GATE = Layout(
    "GATE",
    Field("magic", '"KJGATE1\\0"', "8s"),
    Field("flags", "GATE_FLAG_*"),
    Field("cr3_4level", "root of our page tables: the PML4"),
    Field("cr3_5level", "the PML5"),
    Field("peer_entry", "address at which the peer is started"),
    Field("peer_argument", "the peer's RSI at its start (a kernel: its boot_params)"),
    Field("state", "GATE_STATE_*"),
    Field("a_entry", "address at which A wants to be re-entered"),
    Field("a_stack", "RSP as A's kernel gave it; it points at A_ENTRY"),
    Field("a_cr0", "control registers as A's kernel left them"),
    Field("a_cr3"),
    Field("a_cr4"),
    Field("a_efer"),
    Field("a_gdt_base", "linear address, in A, of CPU 0's GDT"),
    Field("a_gdt_limit", "its limit"),
    Field("next_entry", "pushed on A's stack: the address that A enters next time"),
    Field("mailbox", "the mailbox, a page of A; 0: none"),
    Field("cookie", "what the mailbox must begin with", "16s"),
    Field("tsc_in", "time stamp counter when A entered the gate"),
    Field("tsc_out", "time stamp counter when the gate was left for A"),
    Field("a_apic", "local APIC id of the CPU on which A entered, and must continue"),
    Field("low_page", "a page of the peer below 1 MiB, in which a CPU starts in real mode"),
    Field("restore", "a page list to copy before A is entered; 0: none"),
    Field("b_entry", "address at which a parked B wants to be re-entered"),
    Field("b_stack", "RSP as B's kernel gave it; it points at B_ENTRY"),
    Field("b_gdt_base", "linear address, in B, of B's CPU 0's GDT"),
    Field("b_gdt_limit", "its limit"),
    Field("b_next_entry", "pushed on B's stack: the address of its door"),
    Field("switches", "how often the peer has been entered"),
    Field("b_efer", "EFER as B's kernel left it"),
    start=0x40,
)

MAILBOX = Layout(
    "MAILBOX",
    Field("cookie", "random, chosen by A; compared before anything is written", "16s"),
    Field("outcome", "MAILBOX_OUTCOME_*"),
    Field("head", "of the kernel's indirection list for the loaded image (a list entry, with flags)"),
    Field("report_length", "bytes of the report that follows, UTF-8 JSON", "I"),
    Field("restart", "a page list: start the peer anew from it; 0: do not", at=0xFF0),
    Field("wanted", "address of the gate that A wants to enter; 0: the first"),
)
OUTCOMES = Numbers(
    "MAILBOX_OUTCOME",
    ("NONE", 0, "as A posted it"),
    ("GONE", 1, "A entered the gate, but the peer cannot be entered any more"),
    ("RESUMED", 2, "2 to 5 are written by programs of the peer; 2: A has been restored"),
    ("FAILED", 3, ""),
    ("CANCELLED", 4, ""),
    ("DONE", 5, ""),
    ("PANIC", 6, "the peer's kernel panicked"),
    ("RETURNED", 16, "the function returned"),
    ("FAULTED", 17, "an exception ended it"),
)

PAGE_LIST = Layout("PAGE_LIST", Field("from"), Field("to"), Field("pages"))

DOOR_NUMBERS = Numbers("DOOR", ("SIZE", 0x1000, ""))
DOOR = Layout(
    "DOOR",
    Field("cr3_4level", "roots of the gate's page tables"),
    Field("cr3_5level"),
    Field("gate", "address of the entry: SWITCH, WAY_BACK or CRASH"),
    Field("gdt_base", "for GATE_B_GDT_BASE, in R8"),
    Field("gdt_limit", "for GATE_B_GDT_LIMIT, in R9; the door's own address is in R10"),
    start=0x40,
)

CALL_NUMBERS = Numbers(
    "CALL",
    ("SHIM_SIZE", 0x1000, "bytes that a shim may take"),
    ("ARGS_MAX", 64, ""),
    ("PAGES_MAX", 256, ""),
)
BLOCK_NUMBERS = Numbers(
    "BLOCK",
    ("SIZE", 0x1000, ""),
    ("FLAG_FPU", 1, "the function may use the FPU and SSE; A's are kept"),
)
BLOCK = Layout(
    "BLOCK",
    Field("magic", '"KJCALL1\\0"', "8s"),
    Field("flags", "BLOCK_FLAG_*"),
    Field("entry", "the function"),
    Field("gate", "the gate; its way back is where the shim leaves"),
    Field("stack", "the upper end of the function's stack"),
    Field("mailbox", "the mailbox, a page of A; 0: none"),
    Field("cookie", "what the mailbox must begin with", "16s"),
    Field("in_address", "where the arguments' bytes are put"),
    Field("in_size", "how many fit"),
    Field("out_address", "where the function writes its output"),
    Field("out_size", "how many bytes fit"),
    Field("out_length", "how many it has written, also beyond what fits; up to here A fills in the block"),
    Field("calls", "how many calls have begun since the load"),
    Field("fault", "0, or 1 + the vector of the exception that ended the function"),
    Field("fault_code", "its error code"),
    Field("fault_ip", "the instruction"),
    Field("fault_address", "CR2"),
    Field("tsc_begin", "time stamps around the function"),
    Field("tsc_end"),
    Field("kept_sp", "the shim's stack pointer while the function runs"),
    Field("kept_cr0", "control registers, as they are given back"),
    Field("kept_cr4"),
    Field("idt_pointer", "", "10s"),
    Field("args", "u64[CALL_ARGS_MAX]", f"{8 * CALL_NUMBERS['ARGS_MAX']}s", at=0x100),
    Field("fpu", "A's FPU and SSE registers, as FXSAVE lays them out", "512s", at=0x400),
    Field("idt", "32 gates of 16 (i386: 8) bytes", "512s"),
)
CALL_MAILBOX = Layout(
    "MAILBOX",
    Field("value", "what the function returned"),
    Field("args_count"),
    Field("pointers", "bit i: argument i is an offset into the bytes, to become an address"),
    Field("in_length", "bytes that go with the arguments, in the pages"),
    Field("out_length", "bytes the function wrote; as many as fit are in the pages"),
    Field("calls"),
    Field("fault", "as in the block, four words"),
    Field("fault_code"),
    Field("fault_ip"),
    Field("fault_address"),
    Field("tsc_in", "when the gate was entered"),
    Field("tsc_begin"),
    Field("tsc_end"),
    Field("pages_count"),
    Field("args", "u64[CALL_ARGS_MAX]", f"{8 * CALL_NUMBERS['ARGS_MAX']}s", at=0x100),
    Field("pages", "u64[CALL_PAGES_MAX]: addresses of pages of A", f"{8 * CALL_NUMBERS['PAGES_MAX']}s", at=0x400),
    start=0x40,
)

BIOS_NUMBERS = Numbers(
    "BIOS",
    ("BASE", 0x8000, "where the program lies"),
    ("STACK", 0xB000, "upwards to BIOS_BUFFER; the stack begins at its end"),
    ("BUFFER", 0xD000, "where the buffer lies while the BIOS runs"),
    ("BUFFER_SIZE", 0x2000, ""),
    ("END", 0xF000, ""),
    ("COMMAND_INT", 0, "args: command, interrupt, EAX..EBP, DS, ES, buffer's address and length"),
    ("COMMAND_E820", 1, "args: command"),
)
_REGISTERS = ("eax", "ebx", "ecx", "edx", "esi", "edi", "ebp", "ds", "es", "flags")
BIOS_REGISTERS = Layout("BIOS", *(Field(name, kind="I") for name in _REGISTERS))


def headers() -> dict[str, str]:
    """Return the text of each header, and of the linker script's symbols, by file name."""
    files = {"gate.h": _gate_header(), "call.h": _call_header(), "bios.h": _bios_header()}
    return files | {"bios-symbols.ld": BIOS_NUMBERS.symbols()}


def _gate_header() -> str:
    gate = """The gate is position independent. It is loaded at a page boundary in the window of the second kernel, in
        the part that no kernel owns, and is entered by a kernel's kexec code in 64-bit mode, interrupts off, with the
        CPU's own idea of GDT and IDT invalid."""
    mailbox = "The first bytes of the mailbox, a page of A. A report follows, written by B or C (kexec/mailbox.py)."
    page_list = "A page list: source address, destination address and number of pages of each run; 0 pages end it."
    door = """The door: a page of its own through which a resident B leaves. B's kernel swaps that page with one of B's
        whenever B leaves and comes back, so nothing may change in it; what changes is in the gate, which B's kernel
        does not touch. B's identity map has the door, but need not have the gate."""
    return header(
        "gate.h",
        "The gate's binary interface: entries and fields at fixed offsets of the flat binary.",
        (
            *(comment(gate), GATE_NUMBERS, GATE, GATE_FLAGS, GATE_STATES),
            *(comment(mailbox), MAILBOX, OUTCOMES),
            *(comment(page_list), PAGE_LIST, f"#define PAGE_LIST_ENTRY {PAGE_LIST.end:#x}"),
            *(comment(door), DOOR_NUMBERS, DOOR),
        ),
    )


def _call_header() -> str:
    call = """A call crosses three programs: the gate (between two kernels), the shim behind it (between the mailbox
        and a C function) and the function. The shim owns the call block, which lies in the image and so keeps its
        contents from call to call; A fills in its first part when it loads."""
    mailbox = "The mailbox of a call: one page of A, which may name more. It begins as gate.h says."
    return header(
        "call.h",
        "The binary interface of calls, for the shims (call64.S, call32.S, call.c) and the run-time of programs.",
        (comment(call), CALL_NUMBERS, BLOCK_NUMBERS, BLOCK, comment(mailbox), CALL_MAILBOX),
    )


def _bios_header() -> str:
    registers = c_struct("bios_registers", ((name, "I") for name in _REGISTERS))
    return header(
        "bios.h",
        "What bios.c and real16.S share with call/bios.py: where things lie, and the registers of a BIOS call.",
        (BIOS_NUMBERS, comment("Offsets in struct bios_registers."), BIOS_REGISTERS, registers),
    )
