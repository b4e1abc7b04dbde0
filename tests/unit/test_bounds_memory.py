"""Small images that say they are large: refused before memory is taken for what they say.

They are whole, digest and checksums too, and given to `open_image`.
"""

import json
import struct
import tracemalloc

import pytest
from examples import FACTS

from kjump import _core
from kjump.errors import FormatError, ImageError
from kjump.formats import elf, notes, seekable
from kjump.formats.superblock import State, Superblock
from kjump.image.bounds import read_seek_table
from kjump.image.restore import open_image
from kjump.memory import PAGE_SIZE
from kjump.target.device import Place, Target, digest

NOTE = notes.Note("VMCOREINFO", 0, b"OSRELEASE=test\n").encode()


def runs(*items: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack("<3Q", *item) for item in items)


class Medium(Target):
    """A target of `capacity` bytes of which there are only the first; the rest reads as zeros."""

    def __init__(self, capacity: int) -> None:
        self.path, self.place, self.extents = "/medium", Place("/medium"), ()
        self.capacity = capacity
        self.data = b""

    def read(self, offset: int, length: int) -> bytes:
        assert offset + length <= self.capacity, "nobody reads behind the end"
        return self.data[offset : offset + length].ljust(length, b"\0")


def medium(head: bytes, *, frame_size: int = 1 << 20, repeat: int = 1, capacity: int = 0) -> Medium:
    """Return a medium with an image that is its headers, `repeat` times, in frames of `frame_size` bytes."""
    frames, entries = b"", b""
    for at in range(0, len(head), frame_size):
        part = head[at : at + frame_size]
        data = _core.compress_bytes(part, 3)
        entries += struct.pack("<2I", len(data), len(part)) + data[-4:]
        frames += data
    table = seekable.SeekTable(entries * repeat).encode()
    image = frames * repeat + table
    made = Medium(capacity or 4096 + len(image))
    superblock = Superblock(
        state=State.COMPLETE,
        image_length=len(image),
        stream_length=len(head) * repeat,
        header_length=len(head) * repeat,
        seek_table_offset=len(image) - len(table),
        seek_table_length=len(table),
        digest=digest(head, table, b""),
        capacity=made.capacity,
    )
    made.data = superblock.pack() + image
    return made


def peak_of(target: Medium) -> int:
    """Return the most memory that was taken to find that the image is none."""
    tracemalloc.start()
    try:
        with pytest.raises(ImageError):
            open_image(target, states=(State.COMPLETE,))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def core(note: bytes, loads: int = 0) -> bytes:
    head, _ = elf.core_headers([elf.CoreLoad(i * 2 * PAGE_SIZE, 0, PAGE_SIZE) for i in range(loads)], NOTE + note)
    return head


def test_headers_of_zeros_take_no_memory() -> None:
    target = medium(bytes(64 << 20), frame_size=64 << 20, repeat=4)
    assert len(target.data) < 64 << 10
    assert peak_of(target) < 1 << 20


def test_a_large_frame_takes_no_memory() -> None:
    target = medium(bytes(24 << 20), frame_size=24 << 20)
    assert peak_of(target) < 1 << 20


def test_a_seek_table_that_is_not_there_takes_no_memory() -> None:
    target = medium(core(b""), capacity=1 << 40)
    superblock = target.read_superblock()
    length = 256 << 20
    superblock = superblock.evolve(
        seek_table_length=length, image_length=superblock.seek_table_offset + length, stream_length=1 << 45
    )
    target.data = superblock.pack() + target.data[4096:]
    assert peak_of(target) < 8 << 20


def kjump(kind: int, data: bytes) -> bytes:
    return notes.Note("KJUMP", kind, data).encode()


FACTS_NOTE = kjump(1, json.dumps(FACTS.to_json()).encode())


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("page list", FACTS_NOTE + kjump(2, runs((16, 40, 4)) * 400_000)),
        ("facts", kjump(1, b'{"a":[' + b"[]," * 3_000_000 + b"[]]}") + kjump(2, b"")),
        ("notes", b"".join(kjump(i, b"") for i in range(200_000)) + FACTS_NOTE + kjump(2, b"")),
    ],
)
def test_headers_take_a_few_times_their_size(name: str, note: bytes) -> None:
    head = core(note)
    target = medium(head)
    assert len(target.data) < len(head) // 4
    assert peak_of(target) < 4 * len(head) + (4 << 20), name


def test_program_headers_that_no_image_has_are_not_read() -> None:
    head = core(FACTS_NOTE + kjump(2, b""), 60_000)
    assert peak_of(medium(head)) < 4 * len(head) + (1 << 20)


@pytest.mark.parametrize("count", [1, 87380, 87381, 87382, 200_001])
def test_a_long_seek_table_is_read_whole_a_piece_at_a_time(count: int) -> None:
    """The first piece, of 1 MiB, ends within an entry."""
    entries = struct.pack("<3I", 100, 1 << 20, 7) * (count - 1) + struct.pack("<3I", 50, 4096, 8)
    table = seekable.SeekTable(entries).encode()
    offset = 100 * (count - 1) + 50
    superblock = Superblock(
        stream_length=(count - 1 << 20) + 4096,
        image_length=offset + len(table),
        seek_table_offset=offset,
        seek_table_length=len(table),
    )
    target = Medium(4096 + offset + len(table))
    target.data = bytes(4096 + offset) + table
    assert read_seek_table(target, superblock) == table
    with pytest.raises(FormatError, match="does not describe the frames"):
        read_seek_table(target, superblock.evolve(stream_length=superblock.stream_length + 1))
    last = 4096 + offset + len(table) - 9 - 12
    target.data = target.data[:last] + struct.pack("<3I", 50, 0, 8) + target.data[last + 12 :]
    with pytest.raises(FormatError, match=f"frame {count - 1} of its seek table has impossible sizes: 50, 0"):
        read_seek_table(target, superblock)
