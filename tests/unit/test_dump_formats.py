"""kdump-compressed headers and flattened streams, there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import damaged, survives

from kjump.errors import FormatError
from kjump.formats import flattened, kdump
from kjump.memory import FilePiece
from kjump.ranges import Range

HEADER = kdump.KdumpHeader(
    max_mapnr=70000,
    bitmap_blocks=kdump.bitmap_blocks(70000),
    utsname=b"Linux".ljust(kdump.UTSNAME_SIZE, b"\0"),
    timestamp=1_700_000_000,
    status=int(kdump.Status.ZSTD),
    cpus=2,
    phys_base=0x1000000,
    dump_level=31,
    vmcoreinfo=Range(8300, 9000),
    notes=Range(9000, 9200),
)


@pytest.mark.parametrize("word", [4, 8])
@pytest.mark.parametrize("split", [None, Range(5, 700)])
def test_headers_are_read_back(word: int, split: Range | None) -> None:
    from dataclasses import replace

    header = replace(HEADER, word=word, split=split)
    assert kdump.parse(header.encode().ljust(kdump.HEAD_SIZE, b"\0")) == header


@given(damaged(HEADER.encode().ljust(kdump.HEAD_SIZE, b"\0")))
def test_damaged_headers(data: bytes) -> None:
    survives(kdump.parse, data)


def stream(pieces: list[tuple[int, bytes]], end: bool = True) -> bytes:
    body = b"".join(flattened.piece_header(at, len(data)) + data for at, data in pieces)
    return flattened.header() + body + (flattened.trailer() if end else b"")


def reader(data: bytes):  # type: ignore[no-untyped-def]
    return lambda length, offset: data[offset : offset + length]


@given(st.lists(st.tuples(st.integers(0, 60), st.binary(min_size=1, max_size=30)), max_size=12), st.booleans())
def test_later_pieces_override_earlier_ones(pieces: list[tuple[int, bytes]], end: bool) -> None:
    data = stream(pieces, end)
    found, complete = flattened.index(reader(data))
    assert complete is end
    wanted = bytearray(100)
    for at, content in pieces:
        wanted[at : at + len(content)] = content
    got = bytearray(100)
    last = 0
    for piece in found:
        assert piece.address >= last
        last = piece.address + piece.length
        got[piece.address : last] = data[piece.offset : piece.offset + piece.length]
    assert got == wanted


def test_pieces_lie_where_they_were_written() -> None:
    found, _ = flattened.index(reader(stream([(10, b"abc"), (0, b"x")])))
    assert found == [FilePiece(0, 1, 4096 + 16 + 3 + 16), FilePiece(10, 3, 4096 + 16)]


@pytest.mark.parametrize(
    "data", [b"", b"makedumpfile", stream([])[:16] + bytes(4080), stream([(0, b"x")])[:-16] + b"\xfe" * 16]
)
def test_what_is_no_flattened_file(data: bytes) -> None:
    with pytest.raises(FormatError):
        flattened.index(reader(data))
