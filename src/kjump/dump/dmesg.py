"""Reads the kernel's log from its memory.

The ring buffer of printk (5.10 and later) has a ring of descriptors, one of `struct printk_info` beside it, and one of
text. A descriptor's state variable holds its id in the low bits and two bits of state on top; the text of record
`id` lies between two logical positions, the first word there repeating the id. Sources:
kernel/printk/printk_ringbuffer.h and Documentation/admin-guide/kdump/vmcoreinfo.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kjump.dump.kernel import KernelLayout
from kjump.errors import FormatError
from kjump.formats.vmcoreinfo import VmcoreInfo

_COMMITTED = 1
_FINALIZED = 2
_MOST_RING = 1 << 28
_LARGEST_STRUCT = 4096
_BEFORE_PANIC = ("Kernel panic - not syncing", "BUG: ", "kernel BUG at", "Oops: ", "sysrq: Trigger a crash")


@dataclass(frozen=True, slots=True)
class Record:
    """A record of the log: its number, its time since boot in nanoseconds, its caller (task or CPU), its text."""

    sequence: int
    nanoseconds: int
    caller: int
    text: str

    def __str__(self) -> str:
        """Return the line as dmesg prints it, with control characters escaped."""
        seconds, rest = divmod(self.nanoseconds, 10**9)
        stamp = f"[{seconds:5d}.{rest // 1000:06d}] "
        return "\n".join(stamp + printable(line) for line in self.text.split("\n"))


def printable(text: str) -> str:
    """Return `text` with control characters escaped as \\x1b, as dmesg does, except tabs.

    A program of the crashed system may have logged terminal escape sequences.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


def records(layout: KernelLayout) -> Iterator[Record]:
    """Yield the records of the kernel's log, oldest first; FormatError when VMCOREINFO or memory lacks a part of it."""
    ring = _Ring(layout)
    for number in ring.numbers():
        record = ring.record(number)
        if record is not None:
            yield record


def panic_message(lines: list[Record]) -> str | None:
    """Return the message of the kernel's panic, with control characters escaped, or None."""
    for mark in _BEFORE_PANIC:
        for record in lines:
            if mark in record.text:
                return printable(record.text.partition("\n")[0])
    return None


class _Ring:
    """The ring buffer, copied out of the kernel's memory; offsets come from VMCOREINFO."""

    def __init__(self, layout: KernelLayout) -> None:
        self._info = info = layout.info
        self._word = layout.word
        self._id_mask = (1 << layout.word * 8 - 2) - 1
        if "SYMBOL(prb)" not in info.entries and "SYMBOL(log_buf)" in info.entries:
            raise FormatError("this kernel keeps its log as kernels before 5.10 did, which kjump does not read")
        size = _struct_size(info, "printk_ringbuffer")
        prb = layout.read(layout.read_word(info.symbol("prb")), size)
        descs = self._struct("prb_desc_ring", prb[info.offset("printk_ringbuffer.desc_ring") :])
        text = self._struct("prb_data_ring", prb[info.offset("printk_ringbuffer.text_data_ring") :])
        self._bits = _checked(descs.u32("count_bits"))
        self._text_bits = _checked(text.u32("size_bits"))
        self._head, self._tail = descs.word("head_id"), descs.word("tail_id")
        count = 1 << self._bits
        self._desc_size, self._info_size = _struct_size(info, "prb_desc"), _struct_size(info, "printk_info")
        if (self._desc_size + self._info_size) * count + (1 << self._text_bits) > min(_MOST_RING, layout.memory_size):
            raise FormatError("the kernel's log is larger than its memory can hold: its memory is damaged")
        # The ring has megabytes, a record a few bytes: the ring is copied once, and records are views of that copy.
        self._descs = memoryview(layout.read(descs.word("descs"), count * self._desc_size))
        self._infos = memoryview(layout.read(descs.word("infos"), count * self._info_size))
        self._text = memoryview(layout.read(text.word("data"), 1 << self._text_bits))

    def _struct(self, name: str, data: bytes | memoryview) -> _Struct:
        return _Struct(self._info, name, data, self._word)

    def numbers(self) -> Iterator[int]:
        """Yield the ids of descriptors from the oldest to the newest."""
        count = (self._head - self._tail & self._id_mask) + 1
        for step in range(min(count, 1 << self._bits)):
            yield self._tail + step & self._id_mask

    def record(self, number: int) -> Record | None:
        """Return the record with descriptor id `number`; None when it was not finished, or reused."""
        index = number & (1 << self._bits) - 1
        desc = self._struct("prb_desc", _element(self._descs, index, self._desc_size))
        state = desc.word("state_var", "atomic_long_t.counter")
        if state & self._id_mask != number or state >> self._word * 8 - 2 not in (_COMMITTED, _FINALIZED):
            return None
        block = self._struct("prb_data_blk_lpos", desc.rest("text_blk_lpos"))
        about = self._struct("printk_info", _element(self._infos, index, self._info_size))
        text = bytes(self._block(block.word("begin"), block.word("next"))[: about.u16("text_len")])
        return Record(about.u64("seq"), about.u64("ts_nsec"), about.u32("caller_id"), text.decode("utf-8", "replace"))

    def _block(self, begin: int, after: int) -> memoryview:
        """Return the text between two logical positions; empty for a record without data (odd positions)."""
        if begin & 1 and after & 1:
            return self._text[:0]
        size = 1 << self._text_bits
        start, end = begin % size, after % size
        if begin // size != after // size and end:
            start = 0  # a block that would run over the ring's end begins at its start
        return self._text[start + self._word : end if end > start else size]


def _element(array: memoryview, index: int, size: int) -> memoryview:
    return array[index * size : (index + 1) * size]


class _Struct:
    """Reads members of one struct out of bytes."""

    def __init__(self, info: VmcoreInfo, name: str, data: bytes | memoryview, word: int) -> None:
        self._info, self._name, self._data, self._word_size = info, name, data, word

    def _int(self, member: str, size: int, inner: str | None = None) -> int:
        at = self._info.offset(f"{self._name}.{member}")
        if inner is not None:
            at += self._info.get_offset(inner, 0)
        data = self._data[at : at + size]
        if len(data) < size:
            raise FormatError(f"VMCOREINFO: OFFSET({self._name}.{member})={at} lies outside the struct")
        return int.from_bytes(data, "little")

    def rest(self, member: str) -> bytes | memoryview:
        return self._data[self._info.offset(f"{self._name}.{member}") :]

    def word(self, member: str, inner: str | None = None) -> int:
        return self._int(member, self._word_size, inner)

    def u16(self, member: str) -> int:
        return self._int(member, 2)

    def u32(self, member: str) -> int:
        return self._int(member, 4)

    def u64(self, member: str) -> int:
        return self._int(member, 8)


def _struct_size(info: VmcoreInfo, name: str) -> int:
    size = info.size(name)
    if size > _LARGEST_STRUCT:
        raise FormatError(f"VMCOREINFO: SIZE({name})={size} is impossible")
    return size


def _checked(bits: int) -> int:
    if bits > 28:
        raise FormatError(f"the kernel's log has a ring of 2**{bits}: its memory is damaged")
    return bits
