from __future__ import annotations

import bz2
import gzip
import lzma
import os
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given
from mutations import damaged, survives

from kjump import _core
from kjump.errors import FormatError
from kjump.formats import bzimage, cpio
from kjump.initramfs import build
from kjump.kexec.linux import read_kernel
from kjump.lab.machine import kernel_source as kernels

KERNEL = os.environ.get("KJUMP_TEST_BZIMAGE", "")


FIELDS = {
    "setup_sects": (0x1F1, "B", 2),
    "syssize": (0x1F4, "I", 0x40),
    "boot_flag": (0x1FE, "H", 0xAA55),
    "end": (0x201, "B", 0x6A),
    "magic": (0x202, "I", 0x53726448),
    "version": (0x206, "H", 0x020F),
    "kernel_version": (0x20E, "H", 0x300),
    "loadflags": (0x211, "B", 1),
    "initrd_addr_max": (0x22C, "I", 0x7FFFFFFF),
    "kernel_alignment": (0x230, "I", 0x200000),
    "relocatable": (0x234, "B", 1),
    "xloadflags": (0x236, "H", 0x63),
    "cmdline_size": (0x238, "I", 2047),
    "payload_offset": (0x248, "I", 0x210),
    "payload_length": (0x24C, "I", 0x100),
    "pref_address": (0x258, "Q", 0x1000000),
    "init_size": (0x260, "I", 0x800000),
}


def make(**changes: int) -> bytes:
    """A small bzImage of protocol 2.15, each field of `changes` replaced."""
    data = bytearray(3 * 512 + 0x400)
    data[0x500:0x520] = b"6.12.117 (kjump@lab) #1 SMP\0".ljust(32, b"\0")
    data[0x600 + 0x210] = 0x28
    for name, (place, kind, value) in FIELDS.items():
        struct.pack_into(f"<{kind}", data, place, changes.get(name, value))
    return bytes(data)


def test_what_is_read() -> None:
    data = make()
    image = bzimage.parse(data)
    assert (image.version, image.setup_size, image.syssize) == (0x20F, 1536, 0x40)
    assert image.protected_mode == data[1536:]
    assert image.header == data[0x1F1:0x26C]
    assert image.kernel_version == "6.12.117 (kjump@lab) #1 SMP"
    assert image.release == "6.12.117"
    assert (image.kernel_alignment, image.pref_address, image.init_size) == (0x200000, 0x1000000, 0x800000)
    assert (image.cmdline_size, image.initrd_addr_max) == (2047, 0x7FFFFFFF)
    assert image.payload[0] == 0x28 and len(image.payload) == 0x100
    assert image.is_64bit and image.entry64_offset == 0x200


def test_nothing_is_copied() -> None:
    data = bytearray(make())
    image = bzimage.parse(data)
    data[1536] = 0x5A
    assert image.protected_mode[0] == 0x5A


def test_no_setup_sects_means_four() -> None:
    data = make(setup_sects=0) + bytes(1024)
    assert bzimage.parse(data).setup_size == 5 * 512


def test_a_32_bit_kernel() -> None:
    image = bzimage.parse(make(xloadflags=0))
    assert not image.is_64bit
    with pytest.raises(FormatError, match="no 64-bit entry"):
        _ = image.entry64_offset


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a bzImage"),
        (bytes(5000), "HdrS"),
        (make(magic=0), "HdrS"),
        (make(boot_flag=0), "HdrS"),
        (make(version=0x20A), "too old: boot protocol 2.10"),
        (make(loadflags=0), "zImage"),
        (make(relocatable=0), "not relocatable"),
        (make(kernel_alignment=0), "power of two"),
        (make(end=0x20), "setup_header is damaged"),
        (make(end=0xFF), "setup_header is damaged"),
        (make()[:-1], "cut off: it has 2559 bytes of 2560"),
        (make(syssize=0xFFFFFFFF), "cut off"),
        (make(payload_length=0xFFFFFFFF), "beyond the end"),
    ],
)
def test_what_is_refused_and_why(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        bzimage.parse(data)


@given(damaged(make()))
def test_damaged(data: bytes) -> None:
    survives(bzimage.parse, data)


def real_kernel() -> Path:
    """Return the kernel that KJUMP_TEST_BZIMAGE names, or the lab's own if it has been built."""
    built = kernels.cached("6.12")
    if KERNEL or built is None:
        return Path(KERNEL)
    return built.image


def test_a_real_kernel() -> None:
    path = real_kernel()
    if not path.is_file():
        pytest.skip("no real kernel: `kjump lab kernel build` makes one, or name one in KJUMP_TEST_BZIMAGE")
    data = path.read_bytes()
    image = bzimage.parse(data)
    assert len(data) >= image.setup_size + image.syssize * 16
    assert image.release and image.kernel_version.encode() in data
    magics = (b"\x28\xb5", b"\x1f\x8b", b"\xfd7", b"BZ", b"]\0", b"\x02\x21", b"\x89L", b"\x7fE")
    assert bytes(image.payload[:2]) in magics


def portable(*sections: bytes) -> bytes:
    """A PE file with these sections."""
    header = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, len(sections), 0, 0, 0, 112, 0x22E) + bytes(112)
    table = b"".join(name.ljust(8, b"\0") + bytes(32) for name in sections)
    return b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x80) + bytes(0x40) + header + table + bytes(4096)


OTHERS = {
    "UKI": (
        portable(b".text", b".osrel", b".linux", b".initrd"),
        "a unified kernel image .*: take the kernel out of it",
    ),
    "EFI program": (portable(b".text", b".data"), "an EFI program: give the bzImage"),
    "cut PE": (portable(b".linux")[:0x90], "an EFI program"),
    "PE header beyond the end": (b"MZ".ljust(0x3C, b"\0") + b"\xff" * 4, "an EFI program"),
    "zboot": (b"MZ\0\0zimg" + bytes(4096), "an EFI zboot image, which other machines than x86 have"),
    "arm64": (b"MZ".ljust(0x38, b"\0") + b"ARM\x64" + bytes(4096), "a kernel for arm64"),
    "gzip": (gzip.compress(make()), "compressed with gzip: unpack it .`gzip -d`."),
    "xz": (lzma.compress(make()), "compressed with xz"),
    "lzma": (lzma.compress(make(), lzma.FORMAT_ALONE), "compressed with lzma"),
    "zstd": (_core.compress_bytes(make()), "compressed with zstd: unpack it .`zstd -d`."),
    "bzip2": (bz2.compress(make()), "compressed with bzip2"),
    "vmlinux": (Path(sys.executable).read_bytes()[:5000], "an ELF file, as vmlinux is: give the bzImage"),
    "initramfs": (cpio.write([cpio.regular("init", b"#!")]), "an initramfs .cpio."),
    "uImage": (b"\x27\x05\x19\x56" + bytes(4096), "a uImage"),
    "script": (b"#!/bin/sh\n", "a script"),
    "nothing": (b"", "empty"),
    "anything": (b"anything" * 100, "the HdrS signature at 0x202 is missing"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_a_kernel_in_another_form_looks_like_is_said(kind: str) -> None:
    data, what = OTHERS[kind]
    with pytest.raises(FormatError, match=f"^not a bzImage: .*{what}") as caught:
        bzimage.parse(data)
    assert "\n" not in str(caught.value)


@given(damaged(portable(b".text", b".linux")))
def test_no_damage_to_another_form_is_a_traceback(data: bytes) -> None:
    survives(bzimage.parse, data)


def test_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(b"\x7fELF" + bytes(1000))
    with pytest.raises(FormatError, match="vmlinux: not a bzImage: it is an ELF file"):
        read_kernel(path)
    with pytest.raises(FormatError, match="vmlinux: not a bzImage: it is an ELF file"):
        build.entries(path)
