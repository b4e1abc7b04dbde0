"""The memory and the files of a made-up machine: what its kernels find in /proc, /sys and /dev/mem.

One sparse file is the physical memory, /dev/mem, /proc/kcore and /proc/vmcore at once: page 0, which is no RAM, holds
an ELF header whose segments lie in the file where they lie in memory.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
from pathlib import Path

from kjump.formats import cpio, notes
from kjump.gates import GATE_SIZE, Gate
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

MIB = 1 << 20
LOW = Range(0x1000, 0x11000)
WINDOW = Range(16 * MIB, 33 * MIB)
IN_WINDOW = (Range.of_size(WINDOW.start, 8 * PAGE_SIZE), Range.of_size(WINDOW.start + 4 * MIB, 8 * PAGE_SIZE))
"""What of the window a kernel uses; it was told not to use the rest, which the firmware has as RAM all the same."""
OTHER = Range(40 * MIB, 40 * MIB + 64 * PAGE_SIZE)
RAM = RangeSet([LOW, *IN_WINDOW, OTHER])
FIRMWARE = RangeSet([LOW, WINDOW, OTHER])
"""RAM in the firmware's memory map."""
SIZE = OTHER.end
HUGE_AT = 64 * MIB
"""Where the huge pages of a boot kernel lie."""
_LINEAR, _TEXT = 0xFFFF888000000000, 0xFFFFFFFF80000000
TABLES, DATA, CONTROL, LIST, MAILBOX = (OTHER.start + i * PAGE_SIZE for i in range(5))
POOL = Range(OTHER.start + 24 * PAGE_SIZE, OTHER.end)
"""Free pages, of which a load takes some."""
HEAD_AT = CONTROL + 0x830
"""Where the kernel keeps the head of its list of pages for the way back."""
_SYMBOLS = {"gdt_page": 0x100, "_page_poisoning_enabled": 0x200, "loops_per_jiffy": 0x300, "tsc_khz": 0x400}
CPU = "model name\t: simulated\nflags\t\t: lm pdpe1gb nx\n\n"


class Memory:
    """The machine's physical memory, in the file `path`."""

    def __init__(self, path: Path) -> None:
        """Make the file."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(fd, SIZE)
        self.bytes = mmap.mmap(fd, SIZE)
        os.close(fd)
        self.bytes[: len(_core())] = _core()

    def close(self) -> None:
        """Let go of it."""
        self.bytes.close()

    def fill(self, chance: random.Random) -> None:
        """Let a kernel run for a while: RAM holds something else then, and what a kernel knows of itself."""
        for item in RAM:
            pages = [chance.randbytes(64) * (PAGE_SIZE // 64) for _ in range(item.size // PAGE_SIZE)]
            self.bytes[item.start : item.end] = b"".join(pages)
        self.bytes[DATA : DATA + PAGE_SIZE] = bytes(PAGE_SIZE)
        for name, value in {"_page_poisoning_enabled": 1, "loops_per_jiffy": 4000, "tsc_khz": 2_000_000}.items():
            struct.pack_into("<Q", self.bytes, DATA + _SYMBOLS[name], value)
        for page in (CONTROL, LIST, MAILBOX):
            self.bytes[page : page + PAGE_SIZE] = bytes(PAGE_SIZE)

    def read(self, address: int, length: int) -> bytes:
        """Return bytes of it."""
        return self.bytes[address : address + length]

    def write(self, address: int, data: bytes) -> None:
        """Put `data` there."""
        self.bytes[address : address + len(data)] = data

    def picture(self) -> dict[int, bytes]:
        """Return the contents of all pages of RAM by their addresses."""
        return {at: self.bytes[at : at + PAGE_SIZE] for r in RAM for at in range(r.start, r.end, PAGE_SIZE)}

    def gate(self, address: int) -> Gate:
        """Return the fields of the gate that lies there."""
        return Gate.unpack(self.read(address, GATE_SIZE))


def _core() -> bytes:
    """Return the ELF header and the notes of memory, as /proc/kcore and /proc/vmcore show them."""
    symbol = f"SYMBOL(init_top_pgt)={_TEXT + TABLES:x}"
    text = f"OSRELEASE={os.uname().release}\nPAGESIZE=4096\n{symbol}\nNUMBER(phys_base)=0\n"
    note = notes.Note(notes.VMCOREINFO, 0, text.encode()).encode()
    loads = list(RAM)
    note_at = 64 + 56 * (len(loads) + 1)
    head = b"\x7fELF\2\1\1".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, len(loads) + 1, 0, 0, 0)
    head += struct.pack("<IIQQQQQQ", 4, 0, note_at, 0, 0, len(note), len(note), 0)
    for item in loads:
        place = (item.start, _LINEAR + item.start, item.start, item.size, item.size, PAGE_SIZE)
        head += struct.pack("<IIQQQQQQ", 1, 7, *place)
    return head + note


def write_files(root: Path, devices: list[str]) -> None:
    """Write the files of a made-up machine below `root`; `devices` are device files, the first is mounted at /."""
    ram = "".join(f"{r.start:08x}-{r.end - 1:08x} : System RAM\n" for r in RAM)
    texts = {
        "proc/iomem": ram + f"{30 * MIB:08x}-{31 * MIB - 1:08x} : Crash kernel\n",
        "proc/cpuinfo": CPU,
        "proc/meminfo": f"MemTotal: {4 << 20} kB\nMemFree: {2 << 20} kB\nMemAvailable: {3 << 20} kB\nSwapFree: 0 kB\n",
        "proc/cmdline": "console=ttyS0 root=/dev/fs kjump.resume=/dev/sim\n",
        "proc/uptime": "1.25 1.00\n",
        "proc/kallsyms": "".join(f"{_LINEAR + DATA + at:x} D {name}\n" for name, at in _SYMBOLS.items()),
        "proc/self/mounts": f"{devices[0]} / ext4 rw,relatime 0 0\nproc /proc proc rw 0 0\n",
        "proc/swaps": "Filename Type Size Used Priority\n",
        "proc/sys/kernel/random/boot_id": "00000000-0000-0000-0000-000000000000\n",
        "proc/sys/kernel/kexec_load_disabled": "0\n",
        "sys/kernel/vmcoreinfo": "1000 1000\n",
        "sys/dev/block/0:0/stat": "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n",
        **{name.lstrip("/"): "" for name in devices},
    }
    for i, item in enumerate(FIRMWARE):
        folder = f"sys/firmware/memmap/{i}/"
        texts |= {folder + "start": f"{item.start:#x}", folder + "end": f"{item.end - 1:#x}"}
        texts[folder + "type"] = "System RAM"
    for name, text in texts.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    (root / "boot").mkdir()
    (root / "boot/vmlinuz").write_bytes(kernel())
    (root / "boot/initrd").write_bytes(initrd())
    (root / "proc/kcore").symlink_to(root / "dev/mem")
    (root / "proc/vmcore").symlink_to(root / "dev/mem")


def kernel() -> bytes:
    """Return a bzImage of boot protocol 2.15 that nobody will ever run."""
    data = bytearray(3 * 512 + 0x400)
    data[0x500:0x520] = os.uname().release.encode()[:20].ljust(32, b"\0")
    fields = [(0x1F1, "B", 2), (0x1F4, "I", 0x40), (0x1FE, "H", 0xAA55), (0x201, "B", 0x6A), (0x202, "I", 0x53726448),
              (0x206, "H", 0x20F), (0x20E, "H", 0x300), (0x211, "B", 1), (0x22C, "I", 0x7FFFFFFF),
              (0x230, "I", 0x200000), (0x234, "B", 1), (0x236, "H", 0x63), (0x238, "I", 2047), (0x248, "I", 0x210),
              (0x24C, "I", 0x100), (0x258, "Q", 0x1000000), (0x260, "I", 0x10000)]  # fmt: skip
    for at, kind, value in fields:
        struct.pack_into(f"<{kind}", data, at, value)
    return bytes(data)


def initrd() -> bytes:
    """Return a small initramfs."""
    return cpio.write([cpio.regular("init", b"#!")])
