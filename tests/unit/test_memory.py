from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import FormatError
from kjump.memory import BytesMemory, FileMemory, FilePiece, PhysicalMemory
from kjump.ranges import Range, RangeSet

CONTENTS = bytes(range(1, 101))
addresses = st.integers(0, 80)
lengths = st.integers(0, 40)


@pytest.fixture(scope="module")
def fd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    path: Path = tmp_path_factory.mktemp("memory") / "file"
    path.write_bytes(CONTENTS)
    handle = os.open(path, os.O_RDONLY)
    yield handle
    os.close(handle)


@st.composite
def pieces(draw: st.DrawFn) -> list[FilePiece]:
    """Pieces that do not overlap, some touching, in any order, anywhere in the file."""
    found, at = [], draw(st.integers(0, 10))
    for length in draw(st.lists(st.integers(0, 20), max_size=5)):
        found.append(FilePiece(at, length, draw(st.integers(0, len(CONTENTS) - length))))
        at += length + draw(st.sampled_from([0, 0, 1, 7]))
    return draw(st.permutations(found))


def check_read(memory: PhysicalMemory, known: dict[int, int], address: int, length: int) -> None:
    wanted = range(address, address + length)
    if all(at in known for at in wanted):
        assert memory.read(address, length) == bytes(known[at] for at in wanted)
    else:
        with pytest.raises(FormatError, match="no memory at physical address"):
            memory.read(address, length)


@given(st.binary(max_size=50), st.integers(0, 30), addresses, lengths)
def test_bytes_memory(data: bytes, base: int, address: int, length: int) -> None:
    memory = BytesMemory(data, base)
    assert memory.ranges == RangeSet([Range.of_size(base, len(data))])
    check_read(memory, {base + i: value for i, value in enumerate(data)}, address, length)


@given(parts=pieces(), address=addresses, length=lengths)
def test_file_memory(fd: int, parts: list[FilePiece], address: int, length: int) -> None:
    memory = FileMemory(fd, parts)
    known = {p.address + i: CONTENTS[p.offset + i] for p in parts for i in range(p.length)}
    assert {at for r in memory.ranges for at in range(r.start, r.end)} == set(known)
    check_read(memory, known, address, length)


@given(parts=pieces(), address=addresses, length=lengths)
def test_locate(fd: int, parts: list[FilePiece], address: int, length: int) -> None:
    memory = FileMemory(fd, parts)
    try:
        found = memory.locate(address, length)
    except FormatError:
        return
    assert sum(piece.length for piece in found) == length
    at = address
    for piece in found:
        assert piece.address == at and piece.length > 0
        at += piece.length


def test_a_file_that_is_cut_off(fd: int) -> None:
    memory = FileMemory(fd, [FilePiece(0x1000, 200, 50)])
    assert memory.read(0x1000, 50) == CONTENTS[50:]
    with pytest.raises(FormatError, match="cut off"):
        memory.read(0x1000, 51)


def test_what_is_missing_is_told(fd: int) -> None:
    memory = FileMemory(fd, [FilePiece(0, 16, 0), FilePiece(32, 16, 16)])
    with pytest.raises(FormatError, match=r"0x10 \(16 bytes of 24 are missing\)"):
        memory.read(8, 24)


def test_what_is_large_is_read_through_a_map_if_that_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, size = tmp_path / "file", 300 << 10
    contents = bytes(range(256)) * (2 * size // 256)
    path.write_bytes(contents)
    given = os.open(path, os.O_RDONLY)
    pieces = [FilePiece(0, size, 100), FilePiece(size, size, len(contents) - size)]
    plain, mapped = FileMemory(given, pieces), FileMemory(given, pieces, mapped=True)
    for address, length in ((0, 2 * size), (5, size - 5), (0, 1000), (size - 1, 2)):
        assert mapped.read(address, length) == plain.read(address, length)
    cut_off = FileMemory(given, [FilePiece(0, size, len(contents) - size + 1)], mapped=True)
    with pytest.raises(FormatError, match="cut off"):
        cut_off.read(0, size)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", None)
        assert mapped.read(5, size - 5) == contents[105 : 100 + size]
    os.close(given)
