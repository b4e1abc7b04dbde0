"""The running kernel's memory and symbols: /proc/kcore and /proc/kallsyms.

Addresses of kernel symbols, which do not change while a kernel runs, are cached; nothing else is. `forget_symbols` is
for tests, in which one process sees more than one kernel.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from enum import StrEnum

from kjump.errors import FormatError, HostError
from kjump.formats import elf, notes
from kjump.host import root
from kjump.memory import FileMemory, FilePiece

VMCOREINFO_NAME = "VMCOREINFO"
_SYMBOLS = (
    "gdt_page",
    "__per_cpu_offset",
    "kexec_image",
    "init_on_free",
    "_page_poisoning_enabled",
    "loops_per_jiffy",
    "tsc_khz",
)
"""The names of all kernel symbols that kjump uses."""
_known: dict[str, int] = {}
_GDT_LIMIT = 0x7F
"""The limit of a GDT with sixteen descriptors of eight bytes (GDT_ENTRIES in arch/x86/include/asm/segment.h)."""

_NO_ADDRESS = 1 << 63
"""Segments of /proc/kcore that are not RAM have a physical address above this (-1)."""
_KERNEL_TEXT = 0xFFFF_FFFF_8000_0000
"""The linear address from which the kernel's image is mapped, in addition to the direct map
(Documentation/arch/x86/x86_64/mm.rst)."""


def symbols(names: Iterable[str]) -> dict[str, int]:
    """Return the linear addresses of kernel symbols (of _SYMBOLS) from /proc/kallsyms; absent ones are left out.

    HostError when addresses are hidden (kernel.kptr_restrict).
    """
    known = known_symbols()
    found = {name: known[name] for name in names if name in known}
    if found and not any(found.values()):
        raise HostError("/proc/kallsyms hides addresses: be root, and set kernel.kptr_restrict to 0 or 1")
    return found


def known_symbols() -> dict[str, int]:
    """Return the linear addresses of all symbols of _SYMBOLS, found in one pass: /proc/kallsyms is slow to read.

    The addresses are 0 when the kernel hides them.
    """
    if not _known:
        text = root.at("/proc/kallsyms").read_bytes()
        for name in _SYMBOLS:
            end = text.find(f" {name}\n".encode())
            if end >= 0:
                start = text.rfind(b"\n", 0, end) + 1
                _known[name] = int(text[start : text.index(b" ", start)], 16)
    return _known


def know_symbols(known: Mapping[str, int]) -> None:
    """Use `known`, which `known_symbols` returned earlier in this boot, instead of reading /proc/kallsyms."""
    _known.update(known)


def forget_symbols() -> None:
    """Clear the cache of symbols."""
    _known.clear()


class Kcore:
    """The running kernel's virtual memory, through /proc/kcore (an ELF core file of the live kernel)."""

    def __init__(self, path: str = "/proc/kcore") -> None:
        """Open the file and read its headers; HostError when that is refused, FormatError when it is no ELF core."""
        try:
            self._fd = os.open(root.at(path), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"cannot open {path}: {error.strerror}; CONFIG_PROC_KCORE and root are needed") from None
        header = elf.parse_header(os.pread(self._fd, 64, 0))
        table = os.pread(self._fd, header.table.size, header.table.start)
        self.program_headers = elf.parse_program_headers(header, table)
        pieces = [FilePiece(p.vaddr, p.memsz, p.offset) for p in self.program_headers if p.type == elf.PT_LOAD]
        self._memory = FileMemory(self._fd, pieces)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __enter__(self) -> Kcore:
        """Use as a context manager; it is closed at the end."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the file."""
        self.close()

    def read(self, linear: int, length: int) -> bytes:
        """Return `length` bytes from the kernel's linear address `linear`."""
        return self._memory.read(linear, length)

    def read_u64(self, linear: int) -> int:
        """Return the little-endian u64 at the kernel's linear address `linear`."""
        return int(struct.unpack("<Q", self.read(linear, 8))[0])

    def physical(self) -> FileMemory:
        """Return the running kernel's RAM by physical address, read through its direct map."""
        loads = [p for p in self.program_headers if p.type == elf.PT_LOAD]
        ram = [p for p in loads if p.paddr < _NO_ADDRESS and p.vaddr < _KERNEL_TEXT]
        return FileMemory(self._fd, [FilePiece(p.paddr, p.memsz, p.offset) for p in ram])

    def vmcoreinfo_note(self) -> bytes:
        """Return the VMCOREINFO note, complete (header, name, text, padding)."""
        for header in self.program_headers:
            if header.type == elf.PT_NOTE:
                for note in notes.iterate(os.pread(self._fd, header.filesz, header.offset)):
                    if note.name == VMCOREINFO_NAME:
                        return note.encode()
        raise FormatError("/proc/kcore has no VMCOREINFO note: CONFIG_CRASH_CORE (or VMCORE_INFO) is needed")


def boot_cpu_gdt(kcore: Kcore) -> tuple[int, int]:
    """Return (linear address, limit) of CPU 0's global descriptor table.

    It is the address of the table itself (`gdt_page`, a per-CPU variable). The alias in the CPU entry area has another
    address with each KASLR offset, and the `sgdt` instruction gives a dummy value where UMIP is on.
    """
    found = symbols(("gdt_page", "__per_cpu_offset"))
    if "gdt_page" not in found:
        raise HostError("/proc/kallsyms has no gdt_page: CONFIG_KALLSYMS_ALL is needed")
    offset = kcore.read_u64(found["__per_cpu_offset"]) if "__per_cpu_offset" in found else 0
    return (found["gdt_page"] + offset) % (1 << 64), _GDT_LIMIT


def image_list_head(kcore: Kcore) -> int:
    """Return the head of the loaded image's indirection list (`kexec_image->head`); HostError if none is loaded."""
    found = symbols(("kexec_image",))
    if "kexec_image" not in found:
        raise HostError("/proc/kallsyms has no kexec_image: CONFIG_KALLSYMS_ALL is needed")
    image = kcore.read_u64(found["kexec_image"])
    if not image:
        raise HostError("no image is loaded")
    return kcore.read_u64(image)


def loops_per_jiffy(kcore: Kcore) -> int:
    """Return this kernel's `loops_per_jiffy` (the speed of its delay loop); 0 when it cannot be read."""
    found = symbols(("loops_per_jiffy",))
    return kcore.read_u64(found["loops_per_jiffy"]) if found else 0


def tsc_khz(kcore: Kcore) -> int:
    """Return the rate of the time stamp counter as this kernel measured it, in kHz; 0 when it cannot be read."""
    found = symbols(("tsc_khz",))
    return int.from_bytes(kcore.read(found["tsc_khz"], 4), "little") if found else 0


class FreePages(StrEnum):
    """What a kernel expects its free pages to contain: anything, zeros, or a poison pattern that it checks."""

    ANY = "any"
    ZERO = "zero"
    POISON = "poison"


def free_page_policy(kcore: Kcore) -> FreePages:
    """Return what this kernel expects its free pages to contain.

    It is read from the static keys of init_on_free and page poisoning (mm/page_alloc.c, mm/page_poison.c), whose first
    field is the count of times they were enabled.
    """
    found = symbols(("init_on_free", "_page_poisoning_enabled"))

    def enabled(name: str) -> bool:
        return name in found and kcore.read(found[name], 4) != bytes(4)

    if enabled("_page_poisoning_enabled"):
        return FreePages.POISON
    return FreePages.ZERO if enabled("init_on_free") else FreePages.ANY
