"""By what partitions are named: PARTUUID and PARTLABEL, from a GPT or an MBR.

A partition of a GPT has a GUID and a name of its own. One of an MBR has none: its PARTUUID is made of the disk's
signature and the partition's number, as eight and two hexadecimal digits with a hyphen between.

Sources: UEFI specification 2.10, chapter 5 (GPT header and entries, legacy MBR); the kernel's comment on PARTUUID= in
Documentation/admin-guide/kernel-parameters and block/early-lookup.c for what it stands for.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from kjump.formats.tags import uuid_text

_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
"""Signature, revision, header size, its CRC, reserved, own LBA, other LBA, first and last usable LBA, the disk's GUID,
LBA of the entries, their number, the size of one, their CRC."""
_MOST_ENTRIES_SIZE = 1 << 20

Reader = Callable[[int, int], bytes]
"""Called with (byte offset, length): bytes of the disk, fewer where it ends."""


@dataclass(frozen=True)
class Partition:
    """How a partition is named; `label` is empty where the table has no names."""

    uuid: str
    label: str = ""


def name_of(read: Reader, number: int, sector: int) -> Partition | None:
    """Return how partition `number` (from 1) of the disk behind `read` is named, None when its table does not say.

    `sector` is the size of the disk's logical blocks, in bytes.
    """
    first = read(0, 512)
    entries = _gpt_entries(read, sector)
    if entries is not None:
        return _gpt_partition(entries, number)
    if len(first) < 512 or first[510:512] != b"\x55\xaa":
        return None
    signature = int.from_bytes(first[0x1B8:0x1BC], "little")
    return Partition(f"{signature:08x}-{number:02x}") if signature else None


def _gpt_entries(read: Reader, sector: int) -> list[bytes] | None:
    """Return the entries of a GPT, or None when there is no sound one."""
    header = read(sector, sector)
    if len(header) < _HEADER.size or header[:8] != b"EFI PART":
        return None
    _, _, size, checksum, _, _, _, _, _, _, lba, count, entry_size, entries_checksum = _HEADER.unpack_from(header)
    if not _HEADER.size <= size <= sector or zlib.crc32(header[:16] + bytes(4) + header[20:size]) != checksum:
        return None
    length = count * entry_size
    if entry_size < 128 or not 0 < length <= _MOST_ENTRIES_SIZE:
        return None
    data = read(lba * sector, length)
    if len(data) != length or zlib.crc32(data) != entries_checksum:
        return None
    return [data[at : at + entry_size] for at in range(0, length, entry_size)]


def _gpt_partition(entries: list[bytes], number: int) -> Partition | None:
    if not 1 <= number <= len(entries) or not any(entries[number - 1][:16]):
        return None
    entry = entries[number - 1]
    label = entry[56:128].decode("utf-16-le", "replace").partition("\0")[0]
    guid = entry[19:15:-1] + entry[21:19:-1] + entry[23:21:-1] + entry[24:32]  # its first three parts: little endian
    return Partition(uuid_text(guid), label)
