"""Reads and compresses pages of dump files.

All functions release the interpreter's lock while they work. Bitmaps are those of `kjump._core`, bit 0 for frame 0.
*Pieces* map addresses to a file: three native u64 each, address, length and file offset in bytes, sorted, not
overlapping. *Descriptors* are the 24-byte page descriptors of the kdump-compressed format: offset u64, size u32, flags
u32 (the method), page flags u64. zlib, lzo and snappy are opened at their first use; FormatError when the library is
not installed.
"""

from kjump._core import Buffer

def advance(keep: Buffer, start: int, end: int, pages: int) -> tuple[int, int, int]:
    """Find the next `pages` set bits of a bitmap within [start, end): return first bit, end, and their number.

    The number is less than `pages` when the bitmap has no more; without any set bit the first is `end`.
    """

def drop(keep: bytearray, start: int, end: int, marks: Buffer) -> int:
    """Clear the set bits in [start, end) whose pages are marked; return the number cleared.

    Bit N of `marks` is for the page of the Nth set bit, as in the result of `kjump._core.zero_pages` for `read_pages`.
    """

def read_pages(fd: int, pieces: Buffer, keep: Buffer, stored: Buffer, start: int, end: int) -> bytes:
    """Return the pages of the frames in [start, end) that are set in `stored`, in order.

    Pages that are not set in `keep` too are zeros. The pieces' addresses are physical. FormatError when memory is
    missing or the file is truncated.
    """

def read_kdump(fd: int, pieces: Buffer, descs: Buffer, first: int) -> bytes:
    """Return the pages that `descs` describe; their offsets are the pieces' addresses.

    FormatError when a page is damaged or has no data; the message counts pages from `first`.
    """

def missing(pieces: Buffer, descs: Buffer) -> bytes:
    """Return a bitmap of the descriptors whose data are not completely in the pieces, or that have no offset."""

def compress_pages(pages: Buffer, method: int, level: int, zeros: bool = False) -> tuple[bytearray, bytes]:
    """Compress whole pages one by one; return their descriptors, offsets from 0, and their data.

    A page that does not become smaller is stored uncompressed. With `zeros`, pages of zeros have no data, and a
    descriptor of zeros. `level` is for zlib and zstd.
    """

def place(descs: bytearray, offset: int, zero: int) -> int:
    """Make the offsets of `descs` absolute: data begin at `offset`; pages of zeros are at `zero`, uncompressed.

    Returns the number of pages of zeros.
    """
