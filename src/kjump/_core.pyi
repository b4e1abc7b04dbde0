"""The hot loops over memory: page classes, bitmaps, and memory to and from zstd frames on all cores.

Everything here but `shadow_runs` releases the interpreter's lock while it works, and takes any object with the buffer
protocol. Bitmaps have one bit a page frame, the lowest bit of the lowest byte first. Numbers that are negative or too
large, and buffers that contradict themselves, are a ValueError before anything is done.

The stream is the decompressed image. It is cut into frames of equal size (the last may be shorter), which are
compressed one by one and stand back to back in the file. *Entries* describe them as the seek table does:
three u32 a frame, compressed size, decompressed size and the low half of the XXH64 of the decompressed bytes.
*Spans* say which part of the stream is which part of a file: three native u64 each, stream offset, file offset
and length in bytes, none empty, sorted by stream offset, not overlapping in the stream.
"""

from collections.abc import Callable

from kjump.errors import ImageError, KjumpError

Buffer = bytes | bytearray | memoryview
Progress = Callable[[int, int, int], bool | None]

class Cancelled(KjumpError):
    """The progress callback returned False, and the work was stopped."""

class Damaged(ImageError):
    """Compressed data is damaged, cut off, or not what was written; the text says where."""

def classify(
    structs: Buffer, first_pfn: int, fields: Buffer, exclude: int, keep: bytearray | memoryview
) -> tuple[int, int, int, int, int, int]:
    """Clear the bits of `keep` of pages whose class is in the mask `exclude`; return how many of each class.

    `structs` are the `struct page`s of the frames from `first_pfn` on; a compound page should not be cut after
    its first struct. Bit 0 of `keep` is frame 0; frames beyond its end are ignored. The classes, bit 0 first:
    free, cache, private cache, user, hwpoison, offline. Counted are bits that were set. `fields` are native u64s
    that say how this kernel's struct page is made; `kjump.dump.classes.PageFields` packs them.
    """

def bitmap_runs(
    bitmap: Buffer, start_bit: int, end_bit: int, value: bool = True, min_gap: int = 1
) -> list[tuple[int, int]]:
    """Return the runs of bits that are `value` within [start_bit, end_bit), as half-open pairs.

    Runs with fewer than `min_gap` bits between them are joined; so 0 and 1 join none.
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

    The stream is `head`, then what `spans` say of `source_fd`, and zeros where neither has anything. The source
    is mapped where that works, only in the pages that the spans touch, and what lies between two of them when
    that is no more than `map_gap` bytes: allow it wherever it can be mapped, or scattered pages cost a system call
    or two each. Frames of
    `frame_size` bytes (at most 256 MiB), each with content size and checksum, are compressed by `threads`
    threads and written to `out_fd` from `out_offset` on; a pipe or socket is written in order. After the last
    frame comes what `trailer(entries)` returns: the seek table. The returned length includes it.

    `direct` tells that `out_fd` is O_DIRECT: all writes are whole pages at page-aligned offsets, the last padded
    with zeros (which the returned length does not count). `limit` is how many bytes there are from `out_offset`
    on; when they do not suffice, it is an OSError ENOSPC whose text says how many were needed so far. Nothing is
    flushed to the medium: call fsync. Other trouble with source or output is an OSError that says where.

    With `extents` (native u64 pairs: offset, length) `out_offset` counts through them, one after the other; nothing
    outside them is written. Lengths must be multiples of 4096 when `direct`.

    `progress(stream bytes done, stream_length, bytes written)` is called some six times a second and once when all
    frames are written, in the calling thread. When it returns False the work stops with Cancelled.

    Memory: 2 * threads + 2 frames at their worst compressed size, and per thread one frame and one compressor.
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
    """Decompress what `spans` want of an image into `dest_fd`; return how many bytes were written there.

    The image's first frame begins at byte `image_offset` of `image_fd`; `entries` list all its frames, of which
    those that no span needs are neither read nor checked. Each frame's size and checksum are compared with its
    entry before any byte of it is written; a frame that fails is Damaged, naming its number and place in the
    stream, and then some spans may be written and others not. The destination is mapped as `compress` does the
    source, with `map_gap`; only the spans' bytes are written, and two spans must not share one.

    `threads` + 2 threads read and decompress. `direct` tells that `image_fd` is O_DIRECT (reads are
    page-aligned in any case). `image_offset` counts through `extents`, as in `compress`. `progress(stream bytes done,
    of wanted frames, compressed bytes done)` is as for `compress`.

    Memory: for each of threads + 2, a megabyte or the largest compressed frame, one frame, one decompressor.
    """

def compress_bytes(data: Buffer, level: int = 1) -> bytes:
    """Return `data` as one zstd frame with content size and checksum."""

def decompress_bytes(data: Buffer, max_size: int) -> bytes:
    """Return the contents of `data`: one or more whole zstd frames of any kind.

    Damaged when they are not that, or hold more than `max_size` bytes.
    """

def decompress_frame(data: Buffer, size: int, checksum: int | None = None) -> bytes:
    """Return the `size` bytes of one frame of a stream, checked as `restore` does.

    `data` must be the whole frame and nothing else. `checksum` is its entry's; None when that is not known.
    """

def shadow_runs(read: Callable[[int, int], bytes], head: int) -> bytes:
    """Follow the indirection list of a load from the entry `head` on; return its runs of pages, in its order.

    Three native u64 each: first destination frame, first source frame, and how many. `read(address, length)` returns
    so many bytes of physical memory; it is called in the calling thread, which keeps the interpreter's lock.
    ValueError when that is no such list, or none that ends after 32 GiB.
    """

def time_stamp() -> int:
    """Return the CPU's time stamp counter: ticks since power on, which go on when another kernel takes over."""
