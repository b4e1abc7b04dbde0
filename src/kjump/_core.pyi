"""The hot loops over memory: page classes, bitmaps, and memory to and from zstd frames on all cores.

All functions but `shadow_runs` release the interpreter's lock while they work, and take any object with the buffer
protocol. Bitmaps have one bit for each page frame, the lowest bit of the lowest byte first. ValueError, before anything
is done, for numbers that are negative or too large, and for inconsistent buffers.

The stream is the decompressed image. It is divided into frames of equal size (the last may be shorter), which are
compressed one by one and follow each other in the file. *Entries* describe frames as the seek table does: three u32 for
each frame, compressed size, decompressed size and the low half of the XXH64 of the decompressed bytes. *Spans* map
parts of the stream to parts of a file: three native u64 each, stream offset, file offset and length in bytes, none
empty, sorted by stream offset, not overlapping in the stream.
"""

from collections.abc import Callable

from kjump.errors import ImageError, KjumpError

Buffer = bytes | bytearray | memoryview
Progress = Callable[[int, int, int], bool | None]

class Cancelled(KjumpError):
    """The progress callback returned False, and the work was stopped."""

class Damaged(ImageError):
    """Compressed data is damaged, truncated, or has another checksum than its entry; the text says where."""

def classify(
    structs: Buffer, first_pfn: int, fields: Buffer, exclude: int, keep: bytearray | memoryview
) -> tuple[int, int, int, int, int, int]:
    """Clear the bits of `keep` of pages whose class is in the mask `exclude`; return the number of each class.

    `structs` are the `struct page`s of the frames from `first_pfn` on; they should not end after the first struct of a
    compound page. Bit 0 of `keep` is frame 0; frames beyond its end are ignored. The classes, bit 0 first: free, cache,
    private cache, user, hwpoison, offline. Only bits that were set are counted. `fields` are native u64s with the
    layout of this kernel's struct page; `kjump.dump.classes.PageFields` packs them.
    """

def bitmap_runs(
    bitmap: Buffer, start_bit: int, end_bit: int, value: bool = True, min_gap: int = 1
) -> list[tuple[int, int]]:
    """Return the runs of bits that are `value` within [start_bit, end_bit), as half-open pairs.

    Runs with fewer than `min_gap` bits between them are joined; 0 and 1 join none.
    """

def zero_pages(buffer: Buffer) -> bytes:
    """Return a bitmap of the 4096-byte pages of `buffer` (whole pages only) that are all zero."""

def compress(
    source_fd: int,
    spans: Buffer,
    head: Buffer,
    stream_length: int,
    frame_size: int,
    level: int,
    threads: int,
    out_fd: int,
    out_offset: int,
    direct: bool,
    limit: int,
    trailer: Callable[[bytes], bytes],
    progress: Progress | None = None,
    map_gap: int = 0,
    extents: Buffer = b"",
) -> tuple[int, bytes]:
    """Compress a stream of `stream_length` bytes to frames; return the compressed length and the entries.

    The stream consists of `head`, the `spans` of `source_fd`, and zeros elsewhere. If the source can be mapped, the
    pages of the spans are, and gaps between them of at most `map_gap` bytes; with a `map_gap` of 0 scattered pages
    cost one or two system calls each. Frames of `frame_size` bytes (at most 256 MiB), each with content size and
    checksum, are compressed by `threads` threads and written to `out_fd` from `out_offset` on; a pipe or socket is
    written in order. The result of `trailer(entries)`, the seek table, is written after the last frame; the returned
    length includes it.

    `direct` tells that `out_fd` is O_DIRECT: all writes are whole pages at page-aligned offsets, the last padded
    with zeros (which the returned length does not count). `limit` is the number of bytes available from `out_offset`
    on; OSError ENOSPC, whose text says how many were needed so far, when they do not suffice. The caller must flush
    the output (fsync). Other errors of source or output are an OSError that says where.

    With `extents` (native u64 pairs: offset, length) `out_offset` is an offset in their concatenation; nothing outside
    them is written. Lengths must be multiples of 4096 when `direct`.

    `progress(stream bytes done, stream_length, bytes written)` is called about six times a second and once when all
    frames are written, in the calling thread. Cancelled when it returns False.

    Memory: 2 * threads + 2 frames of the largest compressed size, and for each thread one frame and one compressor.
    """

def restore(
    image_fd: int,
    image_offset: int,
    entries: Buffer,
    spans: Buffer,
    dest_fd: int,
    threads: int,
    direct: bool,
    progress: Progress | None = None,
    map_gap: int = 0,
    extents: Buffer = b"",
) -> int:
    """Decompress the parts of an image that `spans` name into `dest_fd`; return the number of bytes written.

    The image's first frame begins at byte `image_offset` of `image_fd`; `entries` describe all its frames. Frames that
    no span needs are neither read nor checked. Each frame's size and checksum are compared with its entry before any
    byte of it is written; Damaged, with the frame's number and stream offset, when they differ, and then some spans
    have been written and others not. The destination is mapped with `map_gap` as `compress` maps the source; only the
    spans' bytes are written, and no byte may be in two spans.

    `threads` + 2 threads read and decompress. `direct` tells that `image_fd` is O_DIRECT (reads are page-aligned in
    any case). With `extents`, `image_offset` is an offset in their concatenation. `progress(stream bytes done, stream
    bytes of the frames needed, compressed bytes done)` is called as for `compress`.

    Memory: for each of threads + 2, a megabyte or the largest compressed frame, one frame, one decompressor.
    """

def compress_bytes(data: Buffer, level: int = 1) -> bytes:
    """Return `data` as one zstd frame with content size and checksum."""

def decompress_bytes(data: Buffer, max_size: int) -> bytes:
    """Return the contents of `data`: one or more complete zstd frames of any kind.

    Damaged when `data` is something else, or its contents have more than `max_size` bytes.
    """

def decompress_frame(data: Buffer, size: int, checksum: int | None = None) -> bytes:
    """Return the `size` bytes of one frame of a stream, checked as `restore` does.

    `data` must be exactly one complete frame. `checksum` is its entry's; None when that is not known.
    """

def shadow_runs(read: Callable[[int, int], bytes], head: int) -> bytes:
    """Follow the indirection list of a load from the entry `head` on; return its runs of pages, in the list's order.

    A run is three native u64: first destination frame, first source frame, number of pages. `read(address, length)`
    returns bytes of physical memory; it is called in the calling thread, which keeps the interpreter's lock. ValueError
    when an entry is invalid, or the list has no end within 32 GiB.
    """

def time_stamp() -> int:
    """Return the CPU's time stamp counter: ticks since power-on, also counted while another kernel runs."""
