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

from collections.abc import Callable, Iterator
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


_FRAME_MAGIC = 0xFD2FB528
_MOST_OF_A_HEADER = 18
_RLE, _RESERVED_BLOCK = 1, 3


def walk(read: Callable[[int, int], bytes], size: int) -> SeekTable:
    """Return the table of the whole frames at the beginning of a stream that has lost its own.

    `read(offset, length)` returns bytes of it, `size` is how many it has. Only the headers of frames and of their
    blocks are read; the walk ends at the first thing that is no whole frame with size and checksum. Source of the
    frame format: RFC 8878, section 3.1.
    """
    entries = []
    at = 0
    while size - at >= _HEADER.size:
        found = _whole_frame(read, at, size)
        if found is None:
            break
        end, content = found
        entries.append(_ENTRY.pack(end - at, content, int.from_bytes(read(end - 4, 4), "little")))
        at = end
    return SeekTable(b"".join(entries))


def _whole_frame(read: Callable[[int, int], bytes], at: int, size: int) -> tuple[int, int] | None:
    """Return where the frame at `at` ends and how many bytes it holds; None when it is cut off, or none of ours."""
    head = read(at, min(_MOST_OF_A_HEADER, size - at)).ljust(_MOST_OF_A_HEADER, b"\0")
    descriptor = head[4]
    single, checksum = descriptor >> 5 & 1, descriptor >> 2 & 1
    size_bytes = (single, 2, 4, 8)[descriptor >> 6]
    if int.from_bytes(head[:4], "little") != _FRAME_MAGIC or not checksum or not size_bytes:
        return None
    size_at = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
    content = int.from_bytes(head[size_at : size_at + size_bytes], "little") + (256 if size_bytes == 2 else 0)
    block = at + size_at + size_bytes
    last = 0
    while not last:
        if size - block < 3:
            return None
        word = int.from_bytes(read(block, 3), "little")
        last, kind, length = word & 1, word >> 1 & 3, word >> 3
        if kind == _RESERVED_BLOCK:
            return None
        block += 3 + (1 if kind == _RLE else length)
    end = block + 4
    return (end, content) if end <= size and 0 < end - at < 1 << 32 and content <= _MOST_BYTES else None
