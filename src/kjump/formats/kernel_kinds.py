"""Files that hold a kernel in another form than a bzImage: told apart, so that one can say what to do.

Sources: the PE format (a UKI keeps the kernel in the section .linux; UAPI group, "Unified Kernel Image"),
Linux's drivers/firmware/efi/libstub/zboot-header.S and scripts/extract-vmlinux, Documentation/arch/arm64/booting.rst.
"""

from __future__ import annotations

from struct import Struct

Data = bytes | bytearray | memoryview

_GIVE = "give the bzImage, which is in /boot as vmlinuz-VERSION and in a built tree as arch/x86/boot/bzImage"
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gzip -d"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -d"),
    b"\xfd7zXZ\0": ("xz", "xz -d"),
    b"BZh": ("bzip2", "bzip2 -d"),
    b"\x5d\0\0": ("lzma", "xz --format=lzma -d"),
    b"\x02\x21\x4c\x18": ("lz4", "lz4 -d"),
    b"\x04\x22\x4d\x18": ("lz4", "lz4 -d"),
    b"\x89LZO\0": ("lzo", "lzop -d"),
}
_OTHERS = {
    b"\x7fELF": f"it is an ELF file, as vmlinux is: {_GIVE}",
    b"070701": f"it is an initramfs (cpio): {_GIVE}",
    b"\x27\x05\x19\x56": f"it is a uImage, as U-Boot starts them: {_GIVE}",
    b"#!": f"it is a script: {_GIVE}",
}
_SECTION = Struct("<8s32x")
_PE_OFFSET_AT = 0x3C
_PE_HEADER = Struct("<4s2xH12xH2x")  # signature, number of sections, size of the optional header


def what_it_is(data: Data) -> str:
    """Return what `data` looks like and what to do, for the end of a sentence; empty when it is nothing we know."""
    head = bytes(data[:64])
    if not head:
        return f"it is empty: {_GIVE}"
    if head[0x38:0x3C] == b"ARM\x64":  # which may be an EFI program too
        return "it is a kernel for arm64, and kjump needs one for x86"
    if head[:2] == b"MZ":
        return _portable_executable(data, head)
    for magic, (name, command) in _COMPRESSED.items():
        if head.startswith(magic):
            return f"it is compressed with {name}: unpack it (`{command}`), and see what is in it"
    return next((what for magic, what in _OTHERS.items() if head.startswith(magic)), "")


def _portable_executable(data: Data, head: bytes) -> str:
    if head[4:8] == b"zimg":
        return "it is an EFI zboot image, which other machines than x86 have, and kjump needs a kernel for x86"
    if b".linux" in _section_names(data):
        return (
            "it is a unified kernel image (UKI): take the kernel out of it with "
            "`objcopy -O binary --only-section=.linux UKI vmlinuz`, and its initramfs with --only-section=.initrd"
        )
    return f"it is an EFI program: {_GIVE}"


def _section_names(data: Data) -> list[bytes]:
    """Return the names of a PE file's sections, as many as are there; none when it is no such file."""
    at = int.from_bytes(bytes(data[_PE_OFFSET_AT : _PE_OFFSET_AT + 4]), "little")
    header = bytes(data[at : at + _PE_HEADER.size])
    if len(header) < _PE_HEADER.size:
        return []
    signature, count, optional = _PE_HEADER.unpack(header)
    if signature != b"PE\0\0":
        return []
    table = bytes(data[at + _PE_HEADER.size + optional :][: count * _SECTION.size])
    return [
        name.rstrip(b"\0") for (name,) in _SECTION.iter_unpack(table[: len(table) // _SECTION.size * _SECTION.size])
    ]
