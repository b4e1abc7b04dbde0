"""The kdump-compressed format: headers, bitmaps of frames, page descriptors, pages compressed one by one.

    block 0     header: "KDUMP   ", version, utsname, status, sizes (464 bytes, 32-bit kernels 448)
    block 1     sub-header: physical base, dump level, split, where VMCOREINFO and notes are (104 bytes)
    then        first bitmap: frames that are memory; second bitmap: frames that are in this file
    then        a descriptor of 24 bytes for each frame of the second bitmap, in order
    then        data of pages; offsets in descriptors count from the start of the file

Blocks have 4096 bytes, bitmaps one bit a frame, lowest bit first. Numbers are little endian. Source: the drawing of
the format in makedumpfile's IMPLEMENTATION document, and files that makedumpfile wrote.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum, IntFlag
from struct import Struct
from struct import error as StructError

from kjump.errors import FormatError
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, align_up

SIGNATURE = b"KDUMP   "
VERSION = 6
BLOCK = PAGE_SIZE
HEAD_SIZE = 2 * BLOCK
"""Bytes from the beginning of a file that `parse` needs."""

DESCRIPTOR = Struct("<QIIQ")
"""A page descriptor: offset and size of its data, flags (a Method, or 0 for none), page flags (unused)."""

_NOWHERE = Range(0, 0)
_UTS_FIELDS = 6
_UTS_LENGTH = 65
UTSNAME_SIZE = _UTS_FIELDS * _UTS_LENGTH

# signature, version, utsname, padding, tv_sec, tv_usec, status, block_size, sub_hdr_size, bitmap_blocks, max_mapnr,
# total_ram_blocks, device_blocks, written_blocks, current_cpu, nr_cpus
_HEADER = {8: Struct("<8si390s6xQQIiiIIIIIIi"), 4: Struct("<8si390s2xIIIiiIIIIIIi")}
# phys_base, dump_level, split, start_pfn, end_pfn, vmcoreinfo offset and size, note, eraseinfo, start_pfn_64,
# end_pfn_64, max_mapnr_64
_SUB_HEADER = {8: Struct("<QiiQQQQQQQQQQQ"), 4: Struct("<IiiIIQIQIQIQQQ")}


class Method(IntEnum):
    """How pages are compressed; the number is the flag in a page descriptor."""

    NONE = 0
    ZLIB = 0x1
    LZO = 0x2
    SNAPPY = 0x4
    ZSTD = 0x20


class Status(IntFlag):
    """The header's status word: methods used, and whether writing ran out of space."""

    ZLIB = 0x1
    LZO = 0x2
    SNAPPY = 0x4
    INCOMPLETE = 0x8
    ZSTD = 0x20


@dataclass(frozen=True)
class KdumpHeader:
    """What header and sub-header say. Frames are page frame numbers, places are byte ranges of the file.

    `max_mapnr` is the frame behind the last. A split file holds the frames from `start` to `end` only, and
    `word` is the size of the dumped kernel's unsigned long, on which the headers' layout depends.
    """

    max_mapnr: int
    bitmap_blocks: int
    word: int = 8
    version: int = VERSION
    utsname: bytes = b""
    timestamp: int = 0
    status: int = 0
    sub_header_blocks: int = 1
    cpus: int = 1
    phys_base: int = 0
    dump_level: int = 0
    split: Range | None = None
    vmcoreinfo: Range = _NOWHERE
    notes: Range = _NOWHERE

    @property
    def machine(self) -> str:
        """The machine in the header's struct new_utsname; empty when its writer did not know."""
        return self.utsname[4 * _UTS_LENGTH : 5 * _UTS_LENGTH].partition(b"\0")[0].decode("ascii", "backslashreplace")

    @property
    def identity(self) -> tuple[object, ...]:
        """What the parts of one split dump have in common, whoever wrote them and when."""
        return (self.word, self.max_mapnr, self.bitmap_blocks, self.utsname, self.dump_level)

    @property
    def incomplete(self) -> bool:
        """Whether its writer ran out of space, or knew that pages lack; these have descriptors of zeros, or none."""
        return bool(self.status & Status.INCOMPLETE)

    @property
    def bitmap_size(self) -> int:
        """Bytes of one bitmap."""
        return self.bitmap_blocks // 2 * BLOCK

    @property
    def first_bitmap(self) -> Range:
        """Where the bitmap of frames that are memory is."""
        return Range.of_size((1 + self.sub_header_blocks) * BLOCK, self.bitmap_size)

    @property
    def second_bitmap(self) -> Range:
        """Where the bitmap of frames in this file is."""
        return Range.of_size(self.first_bitmap.end, self.bitmap_size)

    @property
    def descriptors(self) -> int:
        """Where the page descriptors begin."""
        return self.second_bitmap.end

    def encode(self) -> bytes:
        """Return header and sub-header as blocks; what they refer to comes after the sub-header's bytes."""
        word = self.word
        low = min(self.max_mapnr, 0xFFFFFFFF)
        ends = (1 << word * 8) - 1
        header = _HEADER[word].pack(
            *(SIGNATURE, self.version, self.utsname[:UTSNAME_SIZE], self.timestamp & ends, 0, self.status, BLOCK),
            *(self.sub_header_blocks, self.bitmap_blocks, low, 0, 0, 0, 0, self.cpus),
        )
        part = self.split or Range(0, 0)
        sub = _SUB_HEADER[word].pack(
            *(self.phys_base & ends, self.dump_level, int(self.split is not None)),
            *(part.start & ends, part.end & ends, self.vmcoreinfo.start, self.vmcoreinfo.size),
            *(self.notes.start, self.notes.size, 0, 0, part.start, part.end, self.max_mapnr),
        )
        return header.ljust(BLOCK, b"\0") + sub

    @property
    def encoded_size(self) -> int:
        """Bytes of header and sub-header before what the sub-header's own blocks may hold besides."""
        return BLOCK + _SUB_HEADER[self.word].size


def parse(head: bytes) -> KdumpHeader:
    """Read header and sub-header from the first HEAD_SIZE bytes of a file; FormatError when they make no sense."""
    if head[:8] != SIGNATURE:
        raise FormatError("not a kdump-compressed file: it does not begin with its signature")
    for word in (8, 4):
        try:
            fields = _HEADER[word].unpack_from(head)
            sub = _SUB_HEADER[word].unpack_from(head, BLOCK)
        except StructError:
            raise FormatError(f"kdump: the file is cut off within its headers, after {len(head)} bytes") from None
        if fields[6] == BLOCK:
            return _checked(_header(word, fields, sub))
    raise FormatError("kdump: the header's block size is not 4096 bytes, so not of an x86 machine")


def _header(word: int, fields: tuple[int, ...], sub: tuple[int, ...]) -> KdumpHeader:
    _, version, utsname, timestamp, _, status, _, sub_blocks, bitmap_blocks, low, *_, cpus = fields
    found = KdumpHeader(
        max_mapnr=low,
        bitmap_blocks=bitmap_blocks,
        word=word,
        version=version,
        utsname=bytes(utsname),
        timestamp=timestamp,
        status=status,
        sub_header_blocks=sub_blocks,
        cpus=cpus,
        phys_base=sub[0],
        dump_level=sub[1],
    )
    # Each version of the format appended fields to the sub-header.
    if version >= 2 and sub[2]:
        first, last = (sub[11], sub[12]) if version >= 6 else (sub[3], sub[4])
        found = replace(found, split=Range(first, max(first, last)))
    if version >= 3:
        found = replace(found, vmcoreinfo=Range.of_size(sub[5], sub[6]))
    if version >= 4:
        found = replace(found, notes=Range.of_size(sub[7], sub[8]))
    if version >= 6 and sub[13]:
        found = replace(found, max_mapnr=sub[13])
    return found


def _checked(header: KdumpHeader) -> KdumpHeader:
    if not 0 < header.sub_header_blocks <= 1 << 16 or header.bitmap_blocks % 2:
        raise FormatError("kdump: the header's numbers of blocks make no sense")
    if header.max_mapnr > header.bitmap_size * 8:
        raise FormatError(f"kdump: bitmaps of {header.bitmap_size} bytes cannot have {header.max_mapnr} frames")
    return header


def bitmap_blocks(frames: int) -> int:
    """Return how many blocks both bitmaps together take for that many frames."""
    return 2 * (align_up(-(-frames // 8), BLOCK) // BLOCK)
