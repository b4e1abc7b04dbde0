"""Memory maps: the e820 table of the boot protocol, and the texts in which Linux prints maps.

An entry of the table is 20 bytes, little endian: address (8), size (8), type (4). /sys/firmware/memmap has
for each entry the files start, end (the last byte) and type; /proc/iomem prints "first-last : name", indented
by two blanks for each level. Source: Documentation/arch/x86/zero-page.rst, ABI/testing/sysfs-firmware-memmap.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from struct import Struct

from kjump.errors import FormatError
from kjump.ranges import Range

RAM = 1
RESERVED = 2
ACPI = 3
NVS = 4
UNUSABLE = 5
PMEM = 7
PRAM = 12
SOFT_RESERVED = 0xEFFFFFFF

TYPE_NAMES = {
    RAM: "System RAM",
    RESERVED: "Reserved",
    ACPI: "ACPI Tables",
    NVS: "ACPI Non-volatile Storage",
    UNUSABLE: "Unusable memory",
    PMEM: "Persistent Memory",
    PRAM: "Persistent Memory (legacy)",
    SOFT_RESERVED: "Soft Reserved",
}
"""What the kernel calls each type."""

ENTRY_SIZE = 20
_ENTRY = Struct("<QQI")
_TYPES = {name.lower(): number for number, name in TYPE_NAMES.items()}
_ADDRESS_END = 1 << 64


@dataclass(frozen=True, order=True, slots=True)
class E820Entry:
    """One range of physical addresses (bytes) and its type, a number as in TYPE_NAMES."""

    range: Range
    type: int

    @property
    def type_name(self) -> str:
        """What the kernel calls the type."""
        return TYPE_NAMES.get(self.type, f"Unknown E820 type {self.type:#x}")

    def __str__(self) -> str:
        """Return type and range, readable."""
        return f"{self.type_name} {self.range}"


@dataclass(frozen=True, slots=True)
class IomemResource:
    """A line of /proc/iomem: physical addresses (bytes), name, and how deep it is nested (0: at the top)."""

    range: Range
    name: str
    depth: int

    @property
    def is_ram(self) -> bool:
        """Whether the kernel uses this as RAM, by whomever it was added: it need not stand at the top of the tree.

        RAM that a CXL window or another bus holds stands below that. RAM that a driver added is called `System RAM
        (driver)`: mm/memory_hotplug.c (add_memory_driver_managed) takes no other name.
        """
        return self.name == TYPE_NAMES[RAM] or bool(self.ram_driver)

    @property
    def ram_driver(self) -> str:
        """The driver (kmem, virtio_mem) that added this RAM after the boot; empty for all else."""
        prefix, bracket, rest = self.name.partition(" (")
        return rest.removesuffix(")") if prefix == TYPE_NAMES[RAM] and bracket and rest.endswith(")") else ""


def pack(entries: Iterable[E820Entry]) -> bytes:
    """Return the entries as a table; FormatError when an address passes 64 bits or a type 32."""
    return b"".join(_pack_entry(entry) for entry in entries)


def unpack(table: bytes | bytearray | memoryview) -> list[E820Entry]:
    """Read a table of whole entries, in its order; FormatError when it is cut off or a range passes 2**64."""
    if len(table) % ENTRY_SIZE:
        raise FormatError(f"e820: the table is cut off: {len(table)} bytes are not whole entries of {ENTRY_SIZE}")
    return [E820Entry(_range(start, start + size), kind) for start, size, kind in _ENTRY.iter_unpack(table)]


def parse_firmware_memmap(entries: Iterable[tuple[str, str, str]]) -> list[E820Entry]:
    """Read (start, end, type), the contents of three files of each /sys/firmware/memmap/N; sorted by address.

    A type whose name is not known counts as RESERVED. FormatError when a number is none.
    """
    found = [
        E820Entry(_range(_hexadecimal(start), _hexadecimal(last) + 1), type_number(name))
        for start, last, name in entries
    ]
    return sorted(found)


def type_number(name: str) -> int:
    """Return the type the kernel calls `name`; RESERVED, which nobody may use, when it is none we know."""
    return _TYPES.get(name.strip().lower(), RESERVED)


def parse_iomem(text: str) -> list[IomemResource]:
    """Read /proc/iomem, in its order; FormatError for an odd line, or when the addresses are hidden."""
    found = [_iomem_line(line) for line in text.split("\n") if line.strip()]
    if len(found) > 1 and all(resource.range.end == 1 for resource in found):
        raise FormatError("/proc/iomem shows no addresses (all are zero): read it as root")
    return found


def sanitize(entries: Iterable[E820Entry]) -> list[E820Entry]:
    """Return the entries sorted, none empty, touching ones of a type joined; FormatError if any overlap."""
    ordered = sorted(e for e in entries if e.range.size)
    for last, entry in pairwise(ordered):
        if last.range.overlaps(entry.range):
            raise FormatError(f"memory map: {last} and {entry} overlap")
    return joined(ordered)


def joined(entries: Iterable[E820Entry]) -> list[E820Entry]:
    """Return the entries sorted, none empty, those of one type joined where they touch or overlap.

    Entries of different types may overlap, and stay as they are: the kernel that reads them knows which counts.
    """
    done: list[E820Entry] = []
    latest: dict[int, int] = {}
    for entry in sorted(e for e in entries if e.range.size):
        index = latest.get(entry.type)
        if index is not None and entry.range.start <= done[index].range.end:
            before = done[index].range
            done[index] = E820Entry(Range(before.start, max(before.end, entry.range.end)), entry.type)
        else:
            latest[entry.type] = len(done)
            done.append(entry)
    return done


def difference(saved: Iterable[E820Entry], present: Iterable[E820Entry]) -> str | None:
    """Return in words the first range in which two maps differ, None when they say the same.

    FormatError when entries of one map overlap. Order, empty entries and how a range of one type is cut into
    entries do not matter.
    """
    before, now = sanitize(saved), sanitize(present)
    for index in range(max(len(before), len(now))):
        left = before[index] if index < len(before) else None
        right = now[index] if index < len(now) else None
        if left != right:
            return _tell_difference(left, right)
    return None


def _tell_difference(left: E820Entry | None, right: E820Entry | None) -> str:
    if left is None or (right is not None and right.range.end <= left.range.start):
        return f"the saved map has nothing at {right}, which this machine has"
    if right is None or left.range.end <= right.range.start:
        return f"this machine has nothing at {left}, which the saved map has"
    return f"the saved map has {left} where this machine has {right}"


def _pack_entry(entry: E820Entry) -> bytes:
    if not (
        0 <= entry.range.start < _ADDRESS_END and entry.range.end <= _ADDRESS_END and entry.range.size < _ADDRESS_END
    ):
        raise FormatError(f"e820: {entry} passes the 64 bits of an address")
    if not 0 <= entry.type < 1 << 32:
        raise FormatError(f"e820: type {entry.type} has more than 32 bits")
    return _ENTRY.pack(entry.range.start, entry.range.size, entry.type)


def _range(start: int, end: int) -> Range:
    if not start <= end <= _ADDRESS_END:
        raise FormatError(f"memory map: a range from {start:#x} to {end:#x} makes no sense")
    return Range(start, end)


def _hexadecimal(text: str) -> int:
    digits = text.strip().removeprefix("0x")
    if not digits or digits.strip("0123456789abcdefABCDEF"):
        raise FormatError(f"memory map: {text[:40]!r} is not a hexadecimal number")
    return int(digits, 16)


def _iomem_line(line: str) -> IomemResource:
    place, colon, name = line.partition(" : ")
    first, dash, last = place.strip(" ").partition("-")
    if not colon or not dash:
        raise FormatError(f"/proc/iomem: cannot understand the line {line[:80]!r}")
    indent = len(place) - len(place.lstrip(" "))
    return IomemResource(_range(_hexadecimal(first), _hexadecimal(last) + 1), name, indent // 2)
