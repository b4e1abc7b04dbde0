"""bzImage: a Linux kernel for x86 as it lies in /boot, read as the boot protocol says.

    0            boot sector; at 0x1f1 begins setup_header, whose end the byte at 0x201 tells
    setup_size   protected-mode code, syssize * 16 bytes: 32-bit entry at 0, 64-bit entry at 0x200
    ...          maybe a signature

Protocol 2.12 (Linux 3.8) is the least we take: it has xloadflags, init_size and pref_address.
Source: Documentation/arch/x86/boot.rst.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct, unpack_from

from kjump.errors import FormatError
from kjump.formats.kernel_kinds import what_it_is
from kjump.ranges import Range, align_up

XLF_KERNEL_64 = 1 << 0

HEADER_START = 0x1F1
HEADER_LIMIT = 0x290
"""Where in the boot sector, and so in boot_params, setup_header begins, and where the room for it ends."""

_SECTOR = 512
_BOOT_FLAG = 0xAA55
_LOADED_HIGH = 1
_OLDEST = 0x020C
_LEAST_END = 0x268

# From 0x22c: initrd_addr_max, kernel_alignment, relocatable_kernel, min_alignment, xloadflags, cmdline_size,
# (hardware_subarch 4, its data 8), payload_offset, payload_length, (setup_data 8), pref_address, init_size
_TAIL = Struct("<IIBBHI12xII8xQI")
_TAIL_AT = 0x22C


@dataclass(frozen=True, slots=True)
class BzImage:
    """A kernel file that can be loaded anywhere; names as in the boot protocol, sizes in bytes."""

    header: bytes
    """setup_header, from 0x1f1 to its end: to be copied to the same place of boot_params."""
    protected_mode: memoryview
    """All that follows the real-mode part: what is to be loaded."""
    version: int
    kernel_version: str
    setup_size: int
    syssize: int
    loadflags: int
    initrd_addr_max: int
    kernel_alignment: int
    min_alignment: int
    xloadflags: int
    cmdline_size: int
    payload_offset: int
    payload_length: int
    pref_address: int
    init_size: int

    @property
    def is_64bit(self) -> bool:
        """Whether the kernel has a 64-bit entry point."""
        return bool(self.xloadflags & XLF_KERNEL_64)

    @property
    def entry64_offset(self) -> int:
        """Where in `protected_mode` the 64-bit entry point is; FormatError when the kernel has none."""
        if not self.is_64bit:
            raise FormatError("this kernel has no 64-bit entry point: it was built for 32-bit x86")
        return 0x200

    @property
    def release(self) -> str:
        """The kernel's release, as uname -r prints it; empty when the file does not tell."""
        return self.kernel_version.partition(" ")[0]

    @property
    def payload(self) -> memoryview:
        """The compressed kernel."""
        return self.protected_mode[self.payload_offset : self.payload_offset + self.payload_length]

    def runtime_range(self, load_address: int) -> Range:
        """Return what memory the kernel takes from boot until it reads its memory map, when loaded there."""
        start = align_up(max(load_address, self.pref_address), self.kernel_alignment)
        return Range.of_size(start, self.init_size)


def parse(data: bytes | bytearray | memoryview) -> BzImage:
    """Read a whole kernel file; FormatError when it is no bzImage, cut off, too old or not relocatable.

    The parts point into `data`, which is not copied.
    """
    view = memoryview(data)
    check_magic(view)
    (version,) = unpack_from("<H", view, 0x206)
    if version < _OLDEST:
        raise FormatError(f"the kernel is too old: boot protocol {version >> 8}.{version & 255:02}, 2.12 is needed")
    header_end = _header_end(view)
    setup_size = ((view[HEADER_START] or 4) + 1) * _SECTOR
    (syssize,) = unpack_from("<I", view, 0x1F4)
    _check_length(view, setup_size, syssize)
    tail = _TAIL.unpack_from(view, _TAIL_AT)
    initrd_max, alignment, relocatable, min_alignment, xloadflags, cmdline, *payload, preferred, init_size = tail
    _check_loadable(view[0x211], relocatable, alignment)
    image = BzImage(
        header=bytes(view[HEADER_START:header_end]),
        protected_mode=view[setup_size:],
        version=version,
        kernel_version=_kernel_version(view[:setup_size]),
        setup_size=setup_size,
        syssize=syssize,
        loadflags=view[0x211],
        initrd_addr_max=initrd_max,
        kernel_alignment=alignment,
        min_alignment=min_alignment,
        xloadflags=xloadflags,
        cmdline_size=cmdline,
        payload_offset=payload[0],
        payload_length=payload[1],
        pref_address=preferred,
        init_size=init_size,
    )
    if len(image.payload) < image.payload_length:
        raise FormatError("bzImage: the compressed kernel reaches beyond the end of the file")
    return image


def parse_file(data: bytes | bytearray | memoryview, path: object) -> BzImage:
    """Read what is in the file `path` as `parse` does; the FormatError names it."""
    try:
        return parse(data)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None


def check_magic(data: bytes | memoryview) -> None:
    """Raise FormatError unless `data`, the first bytes of a file (1 KiB at least), begin as a bzImage does."""
    view = memoryview(data)
    if bytes(view[0x202:0x206]) != b"HdrS" or view[0x1FE:0x200] != _BOOT_FLAG.to_bytes(2, "little"):
        raise FormatError(f"not a bzImage: {what_it_is(view) or 'the HdrS signature at 0x202 is missing'}")
    if len(view) < _LEAST_END:
        raise FormatError(f"not a bzImage: {len(view)} bytes are too few for its header")


def _header_end(view: memoryview) -> int:
    end: int = 0x202 + view[0x201]
    if not _LEAST_END <= end <= HEADER_LIMIT:
        raise FormatError(f"bzImage: setup_header is damaged: it ends at {end:#x}")
    return end


def _check_length(view: memoryview, setup_size: int, syssize: int) -> None:
    needed = setup_size + syssize * 16
    if not syssize or len(view) < needed:
        raise FormatError(f"the bzImage is cut off: it has {len(view)} bytes of {needed}")


def _check_loadable(loadflags: int, relocatable: int, alignment: int) -> None:
    if not loadflags & _LOADED_HIGH:
        raise FormatError("the kernel is a zImage, which is loaded low; a bzImage is needed")
    if not relocatable:
        raise FormatError("the kernel is not relocatable: build it with CONFIG_RELOCATABLE")
    if not alignment or alignment & (alignment - 1):
        raise FormatError(f"bzImage: kernel_alignment is {alignment:#x}, which is no power of two")


def _kernel_version(setup: memoryview) -> str:
    (pointer,) = unpack_from("<H", setup, 0x20E)
    if not pointer:
        return ""
    text = bytes(setup[pointer + 0x200 :]).partition(b"\0")[0]
    return text.decode("ascii", "replace")
