"""boot_params, the "zero page": 4 KiB in which a boot loader tells an x86 kernel what it needs to know.

    0x000  screen_info, 64 bytes            0x1e8  number of e820 entries
    0x070  acpi_rsdp_addr                   0x1f1  setup_header, copied from the kernel file; within it
    0x0c0  ext_ramdisk_image                       0x210 type_of_loader   0x218 ramdisk_image
    0x0c4  ext_ramdisk_size                        0x21c ramdisk_size     0x228 cmd_line_ptr
    0x0c8  ext_cmd_line_ptr                 0x2d0  e820 entries, 20 bytes each, at most 128

An address with more than 32 bits has its upper half in the field ext_*. The sentinel at 0x1ef must be zero. At 0x250 in
setup_header, setup_data points to a list of nodes: next (8), type (4), length (4), data. Entries beyond 128 go into one
of type 1, SETUP_E820_EXT. Source: Documentation/arch/x86/zero-page.rst and boot.rst; asm/setup_data.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct, pack_into, unpack_from

from kjump.errors import FormatError
from kjump.formats import e820
from kjump.formats.bzimage import HEADER_LIMIT, HEADER_START
from kjump.formats.e820 import E820Entry
from kjump.ranges import Range

SIZE = 4096
E820_MAX = 128
SCREEN_INFO_SIZE = 64
LOADER_UNDEFINED = 0xFF
"""type_of_loader of a boot loader without an assigned number."""

_EXT_MEM_K = 0x002
_E820_COUNT = 0x1E8
_E820_TABLE = 0x2D0
_RSDP = 0x070
_LOADER = 0x210
_RAMDISK_IMAGE = (0x218, 0x0C0)
_RAMDISK_SIZE = (0x21C, 0x0C4)
_CMDLINE = (0x228, 0x0C8)
_SETUP_DATA = 0x250
_SETUP_E820_EXT = 1
_NODE = Struct("<QII")
_HEADER_LEAST = 0x22C
_NOTHING = Range(0, 0)


@dataclass(frozen=True, slots=True)
class BootParams:
    """What boot_params tell; physical addresses and sizes in bytes, 0 or empty for what there is not.

    `setup_header` is the kernel file's own (`BzImage.header`); fields told here are overwritten in it.
    """

    setup_header: bytes
    cmdline_address: int = 0
    initrd: Range = _NOTHING
    e820: tuple[E820Entry, ...] = ()
    acpi_rsdp: int = 0
    screen_info: bytes = b""
    loader_type: int = LOADER_UNDEFINED
    setup_data: int = 0


def build(params: BootParams) -> bytes:
    """Return the 4 KiB page; FormatError when more than 128 e820 entries or too long a part do not fit."""
    _check(params)
    page = bytearray(SIZE)
    page[: len(params.screen_info)] = params.screen_info
    page[HEADER_START : HEADER_START + len(params.setup_header)] = params.setup_header
    page[_LOADER] = params.loader_type
    _put_split(page, _RAMDISK_IMAGE, params.initrd.start)
    _put_split(page, _RAMDISK_SIZE, params.initrd.size)
    _put_split(page, _CMDLINE, params.cmdline_address)
    pack_into("<Q", page, _RSDP, params.acpi_rsdp)
    pack_into("<Q", page, _SETUP_DATA, params.setup_data)
    table = e820.pack(params.e820)
    page[_E820_COUNT] = len(params.e820)
    page[_E820_TABLE : _E820_TABLE + len(table)] = table
    return bytes(page)


def e820_extension(entries: Sequence[E820Entry]) -> bytes:
    """Return the node, the last of its list, with the `entries` that boot_params have no room for."""
    table = e820.pack(entries)
    return _NODE.pack(0, _SETUP_E820_EXT, len(table)) + table


def screen_to_hand_on(screen_info: bytes) -> bytes:
    """Return a kernel's `screen_info` for the next one: all of it but ext_mem_k, a size of memory from the BIOS.

    A kernel goes by that, and by alt_mem_k, when it finds its e820 table of no use. Source: asm/screen_info.h and
    setup_boot_parameters() in arch/x86/kernel/kexec-bzimage64.c, which hands on the same.
    """
    if len(screen_info) < SCREEN_INFO_SIZE:
        return b""
    return screen_info[:_EXT_MEM_K] + bytes(2) + screen_info[_EXT_MEM_K + 2 : SCREEN_INFO_SIZE]


def parse(page: bytes | bytearray | memoryview) -> BootParams:
    """Read the page back; `screen_info` comes whole, or empty when all zero; FormatError for nonsense."""
    if len(page) < SIZE:
        raise FormatError(f"boot_params are cut off: {len(page)} bytes of {SIZE}")
    count = page[_E820_COUNT]
    if count > E820_MAX:
        raise FormatError(f"boot_params are damaged: {count} e820 entries, at most {E820_MAX} fit")
    screen = bytes(page[:SCREEN_INFO_SIZE])
    start, size = _get_split(page, _RAMDISK_IMAGE), _get_split(page, _RAMDISK_SIZE)
    (rsdp,) = unpack_from("<Q", page, _RSDP)
    (setup_data,) = unpack_from("<Q", page, _SETUP_DATA)
    return BootParams(
        setup_header=_setup_header(page),
        cmdline_address=_get_split(page, _CMDLINE),
        initrd=Range.of_size(start, size),
        e820=tuple(e820.unpack(page[_E820_TABLE : _E820_TABLE + count * e820.ENTRY_SIZE])),
        acpi_rsdp=rsdp,
        screen_info=screen if any(screen) else b"",
        loader_type=page[_LOADER],
        setup_data=setup_data,
    )


def _check(params: BootParams) -> None:
    if len(params.e820) > E820_MAX:
        raise FormatError(f"boot_params have room for {E820_MAX} e820 entries, not {len(params.e820)}")
    if len(params.screen_info) > SCREEN_INFO_SIZE:
        raise FormatError(f"screen_info has {len(params.screen_info)} bytes, more than {SCREEN_INFO_SIZE}")
    if not _HEADER_LEAST <= HEADER_START + len(params.setup_header) <= HEADER_LIMIT:
        raise FormatError(f"setup_header cannot have {len(params.setup_header)} bytes")
    numbers = (params.cmdline_address, params.initrd.start, params.initrd.size, params.acpi_rsdp, params.setup_data)
    if not all(0 <= number < 1 << 64 for number in numbers):
        raise FormatError("boot_params: an address has more than 64 bits")
    if not 0 <= params.loader_type < 256:
        raise FormatError(f"boot_params: type_of_loader {params.loader_type:#x} has more than 8 bits")


def _setup_header(page: bytes | bytearray | memoryview) -> bytes:
    end = 0x202 + page[0x201]
    if page[0x202:0x206] != b"HdrS" or not _HEADER_LEAST <= end <= HEADER_LIMIT:
        raise FormatError("boot_params hold no setup_header: the HdrS signature at 0x202 or its length is wrong")
    return bytes(page[HEADER_START:end])


def _put_split(page: bytearray, places: tuple[int, int], value: int) -> None:
    low, high = places
    pack_into("<I", page, low, value & 0xFFFFFFFF)
    pack_into("<I", page, high, value >> 32)


def _get_split(page: bytes | bytearray | memoryview, places: tuple[int, int]) -> int:
    low, high = places
    (lower,), (upper,) = unpack_from("<I", page, low), unpack_from("<I", page, high)
    return int(upper) << 32 | int(lower)
