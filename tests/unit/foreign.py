"""Dumps as other programs write them, byte by byte: ELF cores, kdump files, flattened streams, a kernel's log."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tinykernel

PAGE = 4096
PAGES = {i: bytes([i]) * PAGE for i in range(1, 9)}
"""Eight pages to dump, frame 1 to 8."""


def note(name: str, kind: int, desc: bytes, align: int = 4) -> bytes:
    """Return an ELF note, its contents and what follows at multiples of `align`."""
    raw = name.encode() + b"\0"
    head = struct.pack("<3I", len(raw), len(desc), kind) + raw
    return head + bytes(-len(head) % align) + desc + bytes(-len(desc) % align)


def vmcoreinfo(text: str | bytes) -> bytes:
    """Return a VMCOREINFO note."""
    return note("VMCOREINFO", 0, text if isinstance(text, bytes) else text.encode())


@dataclass(frozen=True)
class Load:
    """A PT_LOAD: physical address, contents, size in memory (None: that of the contents), virtual address."""

    paddr: int
    data: bytes
    memsz: int | None = None
    vaddr: int = 0


def elf64(loads: Sequence[Load], notes: bytes = b"", *, machine: int = 62, note_align: int = 0) -> bytes:
    """Return an ELF core with one PT_NOTE; contents begin at a page boundary and follow each other."""
    at = 64 + 56 * (len(loads) + 1)
    head = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 4, machine, 1, 0, 64, 0, 0, 64, 56, len(loads) + 1, 0, 0, 0)
    head += struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(notes), len(notes), note_align)
    offset = -(-(at + len(notes)) // PAGE) * PAGE
    body = b""
    for load in loads:
        memsz = len(load.data) if load.memsz is None else load.memsz
        head += struct.pack("<IIQQQQQQ", 1, 7, offset + len(body), load.vaddr, load.paddr, len(load.data), memsz, 0)
        body += load.data
    return (head + notes).ljust(offset, b"\0") + body


def kdump(
    pages: Mapping[int, bytes],
    *,
    machine: bytes = b"x86_64",
    status: int = 0,
    split: tuple[int, int] | None = None,
    info: bytes = b"",
    notes: bytes = b"",
    memory: Sequence[int] = (),
    lost: Sequence[int] = (),
) -> bytes:
    """Return a kdump-compressed file, not compressed; frames that are `lost` have descriptors of zeros."""
    end = max([*pages, *memory]) + 1
    uts = b"".join(x.ljust(65, b"\0") for x in (b"Linux", b"host", b"6.12.0", b"#1 SMP", machine, b"(none)"))
    blocks = 2 * -(-end // 8 // PAGE) or 2
    fields = (b"KDUMP   ", 6, uts, 1_700_000_000, 0, status, PAGE, 1, blocks, end, 0, 0, 0, 0, 1)
    head = struct.pack("<8si390s6xQQIiiIIIIIIi", *fields).ljust(PAGE, b"\0")
    part = split or (0, 0)
    info_at = PAGE + 104
    notes_at = info_at + len(info)
    sub = struct.pack("<QiiQQ", 0, 0, int(split is not None), *part)
    sub += struct.pack("<QQQQQQ", info_at if info else 0, len(info), notes_at if notes else 0, len(notes), 0, 0)
    sub += struct.pack("<QQQ", *part, end) + info + notes
    own = [frame for frame in sorted(pages) if split is None or split[0] <= frame < split[1]]
    bitmaps = _bitmap([*pages, *memory], blocks) + _bitmap(pages, blocks)
    at = 2 * PAGE + len(bitmaps) + 24 * len(own)
    descs = data = b""
    for frame in own:
        content = b"" if frame in lost else pages[frame]
        descs += struct.pack("<QIIQ", at + len(data), PAGE, 0, 0) if content else bytes(24)
        data += content
    return head + sub.ljust(PAGE, b"\0") + bitmaps + descs + data


def _bitmap(frames: Sequence[int] | Mapping[int, bytes], blocks: int) -> bytes:
    bits = bytearray(blocks // 2 * PAGE)
    for frame in frames:
        bits[frame // 8] |= 1 << frame % 8
    return bytes(bits)


def flat(data: bytes) -> bytes:
    """Return a flattened stream of `data`."""
    out = struct.pack(">16sqq", b"makedumpfile", 1, 1).ljust(PAGE, b"\0")
    for at in range(0, len(data), 2 * PAGE):
        piece = data[at : at + 2 * PAGE]
        out += struct.pack(">qq", at, len(piece)) + piece
    return out + struct.pack(">qq", -1, -1)


_LOG = """SYMBOL(prb)={prb:x}
SIZE(printk_ringbuffer)=96
OFFSET(printk_ringbuffer.desc_ring)=0
OFFSET(printk_ringbuffer.text_data_ring)=48
OFFSET(prb_desc_ring.count_bits)=0
OFFSET(prb_desc_ring.descs)=8
OFFSET(prb_desc_ring.infos)=16
OFFSET(prb_desc_ring.head_id)=24
OFFSET(prb_desc_ring.tail_id)=32
SIZE(prb_desc)=24
OFFSET(prb_desc.state_var)=0
OFFSET(prb_desc.text_blk_lpos)=8
OFFSET(prb_data_blk_lpos.begin)=0
OFFSET(prb_data_blk_lpos.next)=8
SIZE(printk_info)=88
OFFSET(printk_info.seq)=0
OFFSET(printk_info.ts_nsec)=8
OFFSET(printk_info.text_len)=16
OFFSET(printk_info.caller_id)=20
OFFSET(prb_data_ring.size_bits)=0
OFFSET(prb_data_ring.data)=8
OFFSET(atomic_long_t.counter)=0
"""


def log(lines: Sequence[bytes], linear: int, count_bits: int = 6, text_bits: int = 14) -> tuple[bytes, str]:
    """Return a kernel's log to lie at the linear address `linear`, and what VMCOREINFO says of it.

    As in 5.10 and later: a pointer to the ring, the ring, its descriptors, its records, its text.
    """
    count = 1 << count_bits
    descs_at = 128
    infos_at = descs_at + 24 * count
    text_at = infos_at + 88 * count
    descs = infos = text = b""
    for number, line in enumerate(lines):
        begin = len(text)
        text += struct.pack("<Q", number) + line + bytes(-len(line) % 8)
        descs += struct.pack("<QQQ", number | 2 << 62, begin, len(text))
        infos += struct.pack("<QQHBBI", number, number * 10**9, len(line), 0, 0, 0).ljust(88, b"\0")
    ring = struct.pack("<QQQQQQ", count_bits, linear + descs_at, linear + infos_at, len(lines) - 1, 0, 0)
    ring += struct.pack("<QQ", text_bits, linear + text_at)
    found = (struct.pack("<QQ", linear + 16, 0) + ring).ljust(descs_at, b"\0") + descs.ljust(24 * count, b"\0")
    found += infos.ljust(88 * count, b"\0") + text.ljust(1 << text_bits, b"\0")
    return found, _LOG.format(prb=linear)


def tiny_with_log(lines: Sequence[bytes]) -> tuple[bytes, str]:
    """Return memory and VMCOREINFO of the tiny kernel with a log in it."""
    ring, text = log(lines, tinykernel.linear(tinykernel.LOG))
    memory = bytearray(tinykernel.memory())
    memory[tinykernel.LOG * PAGE : tinykernel.LOG * PAGE + len(ring)] = ring
    return bytes(memory), tinykernel.info() + text
