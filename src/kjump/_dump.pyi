"""Pages as dump files keep them: gathered, compressed one by one, and found again.

Everything here releases the interpreter's lock while it works. Bitmaps are those of `kjump._core`, bit 0 being
frame 0. *Pieces* say what of a space of addresses lies where in a file: three native u64 each, address, length and
file offset in bytes, sorted, not overlapping. *Descriptors* are the 24 bytes of the kdump-compressed format: offset
u64, size u32, flags u32 (the method), page flags u64. zlib, lzo and snappy are opened when they are first used; where
the library is not installed, FormatError says so.
"""

from kjump._core import Buffer

def advance(keep: Buffer, start: int, end: int, pages: int) -> tuple[int, int, int]:
    """Find the next set bits of a bitmap within [start, end): return first bit, end, and how many are set.

    They are `pages`, or fewer when the bitmap has no more; then the first may be `end`.
    """

def drop(keep: bytearray, start: int, end: int, marks: Buffer) -> int:
    """Clear those of the bits set in [start, end) whose pages are marked; return how many.

    Bit N of `marks` is about the page of the Nth bit set, as `kjump._core.zero_pages` of `read_pages` has it.
    """

def read_pages(fd: int, pieces: Buffer, keep: Buffer, stored: Buffer, start: int, end: int) -> bytes:
    """Return the pages of the frames in [start, end) that are set in `stored`, in order.

    Those that are not set in `keep` too are zeros. The pieces' addresses are physical. FormatError when memory is
    missing or the file is cut off.
    """

def read_kdump(fd: int, pieces: Buffer, descs: Buffer, first: int) -> bytes:
    """Return the pages that `descs` describe; their offsets are the pieces' addresses.

    FormatError when a page is damaged, or has no data; it counts pages from `first` then.
    """

def missing(pieces: Buffer, descs: Buffer) -> bytes:
    """Return a bitmap of those of `descs` whose data are not, or not all, in the pieces, or that have no offset."""

def compress_pages(pages: Buffer, method: int, level: int, zeros: bool = False) -> tuple[bytearray, bytes]:
    """Compress whole pages one by one; return their descriptors, offsets from 0, and their data.

    A page that does not become smaller is kept as it is. With `zeros`, pages of zeros have no data, and a
    descriptor of zeros. `level` is for zlib and zstd.
    """

def place(descs: bytearray, offset: int, zero: int) -> int:
    """Make offsets absolute: data begin at `offset`, those of a page of zeros are at `zero`, uncompressed.

    Returns how many pages of zeros there are.
    """
