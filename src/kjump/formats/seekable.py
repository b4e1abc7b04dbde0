"""The seek table at the end of a zstd stream in the seekable format, as bytes.

Such a stream is independent zstd frames back to back and then a skippable frame, which every zstd passes over:

    0            magic number of the skippable frame  4 bytes, 0x184D2A5E
    4            size of what follows                 4 bytes: 12 * frames + 9
    8 + 12 * i   frame i: compressed size             4 bytes
    12 + 12 * i           decompressed size           4 bytes
    16 + 12 * i           checksum                    4 bytes, low half of the XXH64 of the decompressed bytes
    then footer: number of frames                     4 bytes
                 descriptor                           1 byte: bit 7 checksums, bits 6-2 reserved, 1-0 unused
                 magic number                         4 bytes, 0x8F92EAB1

All numbers are little endian. Where a frame lies follows from the sizes before it. Tables without checksums
exist (entries of 8 bytes); images have them, and they are required here. Source: zstd,
contrib/seekable_format/zstd_seekable_compression_format.md, version 0.1.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from struct import Struct, iter_unpack

from kjump.errors import FormatError

FOOTER_SIZE = 9
MOST_FRAMES = 0x8000000

_SKIPPABLE_MAGIC = 0x184D2A5E
_MAGIC = 0x8F92EAB1
_CHECKSUMS = 0x80
_RESERVED = 0x7C
_MOST_BYTES = 0x40000000

_HEADER = Struct("<2I")
_ENTRY = Struct("<3I")
_FOOTER = Struct("<IBI")

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: where it lies in the file and in the stream, both in bytes from their start.

    `checksum` is the low half of the XXH64 of its decompressed bytes.
    """

    compressed_offset: int
    compressed_size: int
    stream_offset: int
    size: int
    checksum: int


@dataclass(frozen=True)
class SeekTable:
    """The frames of a stream. `entries` are packed as the table and the native core have them, 12 bytes each."""

    entries: bytes

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.entries) // _ENTRY.size

    def __iter__(self) -> Iterator[Frame]:
        """Go through the frames in their order."""
        compressed_offset = stream_offset = 0
        for compressed_size, size, checksum in iter_unpack(_ENTRY.format, self.entries):
            yield Frame(compressed_offset, compressed_size, stream_offset, size, checksum)
            compressed_offset += compressed_size
            stream_offset += size

    @cached_property
    def compressed_length(self) -> int:
        """Bytes that the frames take; the seek table must begin there."""
        return sum(entry[0] for entry in iter_unpack(_ENTRY.format, self.entries))

    @cached_property
    def stream_length(self) -> int:
        """Bytes of the stream, decompressed."""
        return sum(entry[1] for entry in iter_unpack(_ENTRY.format, self.entries))

    @property
    def encoded_length(self) -> int:
        """Bytes of the table in the file."""
        return _encoded_length(len(self))

    def encode(self) -> bytes:
        """Return the seek table as the skippable frame that ends the stream; FormatError when it cannot be one."""
        _check(self.entries)
        return (
            _HEADER.pack(_SKIPPABLE_MAGIC, self.encoded_length - _HEADER.size)
            + self.entries
            + _FOOTER.pack(len(self), _CHECKSUMS, _MAGIC)
        )

    @classmethod
    def decode(cls, data: Buffer) -> SeekTable:
        """Read a seek table that is exactly `data`; FormatError when it is not one."""
        if len(data) < _encoded_length(0):
            raise FormatError(f"a seek table of {len(data)} bytes is cut off")
        length = table_length(data[-FOOTER_SIZE:])
        if length != len(data):
            raise FormatError(f"the seek table says it has {length} bytes, not {len(data)}")
        magic, size = _HEADER.unpack_from(data)
        if magic != _SKIPPABLE_MAGIC or size != length - _HEADER.size:
            raise FormatError("the seek table's header is damaged")
        entries = bytes(data[_HEADER.size : -FOOTER_SIZE])
        _check(entries)
        return cls(entries)


def table_length(footer: Buffer) -> int:
    """Return how many bytes the seek table has, footer included, from the last 9 bytes of a file.

    FormatError when they are not the footer of a seek table with checksums.
    """
    if len(footer) != FOOTER_SIZE:
        raise FormatError(f"the footer of a seek table has {FOOTER_SIZE} bytes, not {len(footer)}")
    count, descriptor, magic = _FOOTER.unpack(footer)
    if magic != _MAGIC:
        raise FormatError("there is no seek table here: the file does not end with its magic number")
    if descriptor & _RESERVED:
        raise FormatError(f"the seek table uses features that are not known (descriptor {descriptor:#x})")
    if not descriptor & _CHECKSUMS:
        raise FormatError("the seek table has no checksums")
    if count > MOST_FRAMES:
        raise FormatError(f"a seek table cannot have {count} frames")
    return _encoded_length(count)


def _encoded_length(count: int) -> int:
    return _HEADER.size + count * _ENTRY.size + FOOTER_SIZE


def _check(entries: bytes) -> None:
    if len(entries) % _ENTRY.size:
        raise FormatError(f"a list of frames of {len(entries)} bytes is not a multiple of {_ENTRY.size}")
    if len(entries) // _ENTRY.size > MOST_FRAMES:
        raise FormatError(f"a seek table cannot have {len(entries) // _ENTRY.size} frames")
    for index, (compressed_size, size, _) in enumerate(iter_unpack(_ENTRY.format, entries)):
        if compressed_size == 0 or size > _MOST_BYTES:
            raise FormatError(f"frame {index} of the seek table has impossible sizes: {compressed_size} and {size}")
