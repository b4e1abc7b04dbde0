"""VMCOREINFO: the lines of text in which a kernel tells dump tools its addresses, sizes and offsets.

    OSRELEASE=6.12.1          BUILD-ID=<hex>         PAGESIZE=4096          CRASHTIME=<seconds>
    SYMBOL(name)=<hex>        SIZE(type)=<decimal>   OFFSET(type.member)=<decimal>
    LENGTH(array)=<decimal>   NUMBER(name)=<signed decimal, some 0x hex>
    KERNELOFFSET=<hex>        CONFIG_NAME=y

Hexadecimal numbers have no 0x, except some NUMBERs. Values are read when asked for, so one odd line harms
nothing else; they are bounded there by what their kind can be at all. Source:
Documentation/admin-guide/kdump/vmcoreinfo.rst and what kernels print.
"""

from __future__ import annotations

from typing import TypeVar

from kjump.errors import FormatError

_D = TypeVar("_D")

_WORD = 1 << 64
_LARGEST_STRUCT = 1 << 24
_LONGEST_ARRAY = 1 << 32
_LARGEST_PAGE = 1 << 24
_LAST_TIME = 253402300799
"""The end of the year 9999, in seconds since 1970."""


class VmcoreInfo:
    """What a kernel says of itself. `text` is the text as it was, `entries` its lines as key -> value."""

    __slots__ = ("entries", "text")

    def __init__(self, text: str) -> None:
        """Split `text` into lines; lines without "=" are passed over, of two with one key the last counts."""
        self.text = text
        pairs = (line.partition("=") for line in text.split("\n"))
        self.entries = {key: value for key, equals, value in pairs if equals}

    def symbol(self, name: str) -> int:
        """Return the virtual address of a symbol; FormatError when it is not there."""
        return self._number(f"SYMBOL({name})", 16, 0, _WORD - 1)

    def size(self, name: str) -> int:
        """Return the size in bytes of a type; FormatError when it is not there."""
        return self._number(f"SIZE({name})", 10, 1, _LARGEST_STRUCT)

    def offset(self, name: str) -> int:
        """Return the offset in bytes of "type.member"; FormatError when it is not there."""
        return self._number(f"OFFSET({name})", 10, 0, _LARGEST_STRUCT)

    def length(self, name: str) -> int:
        """Return the number of elements of an array; FormatError when it is not there."""
        return self._number(f"LENGTH({name})", 10, 0, _LONGEST_ARRAY)

    def number(self, name: str) -> int:
        """Return a constant or variable of the kernel, maybe negative; FormatError when it is not there."""
        return self._number(f"NUMBER({name})", 10, -_WORD // 2, _WORD - 1)

    def get_symbol(self, name: str, default: _D) -> int | _D:
        """Return as `symbol`, or `default` when the kernel does not tell."""
        return self.symbol(name) if f"SYMBOL({name})" in self.entries else default

    def get_size(self, name: str, default: _D) -> int | _D:
        """Return as `size`, or `default` when the kernel does not tell."""
        return self.size(name) if f"SIZE({name})" in self.entries else default

    def get_offset(self, name: str, default: _D) -> int | _D:
        """Return as `offset`, or `default` when the kernel does not tell."""
        return self.offset(name) if f"OFFSET({name})" in self.entries else default

    def get_length(self, name: str, default: _D) -> int | _D:
        """Return as `length`, or `default` when the kernel does not tell."""
        return self.length(name) if f"LENGTH({name})" in self.entries else default

    def get_number(self, name: str, default: _D) -> int | _D:
        """Return as `number`, or `default` when the kernel does not tell."""
        return self.number(name) if f"NUMBER({name})" in self.entries else default

    def config(self, name: str) -> bool:
        """Tell whether the kernel says it was built with CONFIG_`name`; of most options it says nothing."""
        return self.entries.get(f"CONFIG_{name}") == "y"

    @property
    def release(self) -> str:
        """The kernel's release, as uname -r prints it; FormatError when it is not there."""
        return self._value("OSRELEASE")

    @property
    def page_size(self) -> int:
        """Bytes in a page; FormatError when it is not there or no power of two."""
        size = self._number("PAGESIZE", 10, 1, _LARGEST_PAGE)
        if size & (size - 1):
            raise FormatError(f"VMCOREINFO: PAGESIZE={size} is no power of two")
        return size

    @property
    def kernel_offset(self) -> int:
        """By how many bytes KASLR moved the kernel's text; 0 when it does not tell (i386, no KASLR)."""
        return self._number("KERNELOFFSET", 16, 0, _WORD - 1) if "KERNELOFFSET" in self.entries else 0

    @property
    def build_id(self) -> str | None:
        """The kernel's build id in hexadecimal, None before 5.9."""
        return self.entries.get("BUILD-ID")

    @property
    def crash_time(self) -> int | None:
        """When the kernel crashed, in seconds since 1970, within the year 9999; None when it has not."""
        return self._number("CRASHTIME", 10, 0, _LAST_TIME) if "CRASHTIME" in self.entries else None

    def _value(self, key: str) -> str:
        try:
            return self.entries[key]
        except KeyError:
            raise FormatError(f"VMCOREINFO has no {key}") from None

    def _number(self, key: str, base: int, low: int, high: int) -> int:
        value = self._value(key)
        digits = value.removeprefix("-")
        if digits.startswith("0x"):
            base = 16
        try:
            if not digits[:1].isalnum() or "_" in digits:
                raise ValueError
            number = int(digits, base)
        except ValueError:
            raise FormatError(f"VMCOREINFO: {key[:60]}={value[:40]} is not a number of base {base}") from None
        if value.startswith("-"):
            number = -number
        if not low <= number <= high:
            raise FormatError(f"VMCOREINFO: {key}={value[:40]} is impossible")
        return number


def parse(data: bytes | bytearray | memoryview | str) -> VmcoreInfo:
    """Read the contents of a VMCOREINFO note, up to a NUL or the end.

    A byte that is not ASCII becomes four characters, as \\xff: it spoils its own line only.
    """
    if isinstance(data, str):
        return VmcoreInfo(data)
    return VmcoreInfo(bytes(data).partition(b"\0")[0].decode("ascii", "backslashreplace"))
