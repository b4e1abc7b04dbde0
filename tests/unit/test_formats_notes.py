from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import damaged, survives

from kjump.errors import FormatError
from kjump.formats import elf, notes
from kjump.formats.notes import Note

names = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=20)
note_lists = st.lists(st.builds(Note, names, st.integers(0, 2**32 - 1), st.binary(max_size=50)), max_size=6)
SAMPLE = notes.encode([Note("CORE", 1, bytes(37)), Note("VMCOREINFO", 0, b"OSRELEASE=6.12\n")])


@given(note_lists)
def test_what_is_written_is_read_back(given_notes: list[Note]) -> None:
    assert list(notes.iterate(notes.encode(given_notes))) == given_notes


@given(note_lists, note_lists)
def test_an_all_zero_note_ends_the_list(first: list[Note], second: list[Note]) -> None:
    assert list(notes.iterate(notes.encode(first) + bytes(12) + notes.encode(second))) == first


def test_layout() -> None:
    assert notes.encode([Note("CORE", 1, b"abc")]) == (
        b"\5\0\0\0" + b"\3\0\0\0" + b"\1\0\0\0" + b"CORE\0\0\0\0" + b"abc\0"
    )


def test_the_last_padding_may_be_missing() -> None:
    assert [n.desc for n in notes.iterate(notes.encode([Note("X", 1, b"abc")])[:-1])] == [b"abc"]


def test_find() -> None:
    found = notes.find(SAMPLE, notes.VMCOREINFO)
    assert found is not None and found.desc == b"OSRELEASE=6.12\n"
    assert notes.find(SAMPLE, notes.CORE, notes.NT_PRPSINFO) is None


@pytest.mark.parametrize(("data", "message"), [(SAMPLE[:30], "cut off"), (SAMPLE + b"\1\2", "2 stray bytes")])
def test_what_is_refused_and_why(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        list(notes.iterate(data))


def test_a_name_must_be_8_bit_text() -> None:
    with pytest.raises(FormatError, match="named"):
        Note("\u20ac", 0, b"").encode()


@given(damaged(SAMPLE))
def test_damaged(data: bytes) -> None:
    survives(lambda damage: list(notes.iterate(damage)), data)


def salvaged(data: bytes, align: int = 4) -> notes.Salvage:
    return notes.salvage(lambda at, length: data[at : at + length], len(data), align)


@given(st.lists(st.builds(Note, st.just("CORE"), st.integers(1, 2**32 - 1), st.binary(max_size=50)), max_size=6))
def test_good_notes_are_salvaged_as_they_are(given_notes: list[Note]) -> None:
    assert salvaged(notes.encode(given_notes)) == notes.Salvage(tuple(given_notes), ())


@given(damaged(SAMPLE), st.sampled_from([4, 8]))
def test_salvaging_raises_nothing(data: bytes, align: int) -> None:
    survives(lambda damage: notes.encode(salvaged(damage, align).notes), data)


def test_what_lies_between_two_notes_is_passed_over() -> None:
    good = Note("VMCOREINFO", 0, b"OSRELEASE=6.12\n")
    found = salvaged(SAMPLE[:60] + b"\xff" * 1000 + good.encode() + b"\1\2")
    assert found.notes == (Note("CORE", 1, bytes(37)), good)
    assert len(found.problems) == 2 and "stray" in found.problems[1]


def test_contents_that_are_too_large_are_not_read() -> None:
    large = Note("LINUX", notes.NT_VMCOREDD, bytes(notes.MOST_OF_ONE + 1)).encode()
    data = large + SAMPLE
    read: list[int] = []

    def noted(at: int, length: int) -> bytes:
        read.append(length)
        return data[at : at + length]

    found = notes.salvage(noted, len(data))
    assert [note.name for note in found.notes] == ["CORE", "VMCOREINFO"]
    assert sum(read) < 1000 and not found.problems
    (left,) = found.large
    assert left.encoded_size == len(large) and b"".join(left.encode()) == large
    many = salvaged(Note("CORE", 1, bytes(notes.MOST_OF_ONE)).encode() * 20 + SAMPLE)
    assert sum(len(note.desc) for note in many.notes) <= notes.MOST_OF_ALL + 100 and len(many.large) == 5
    assert many.notes[-1].name == "VMCOREINFO"


def test_pyelftools_agrees() -> None:
    elffile = pytest.importorskip("elftools.elf.elffile", reason="no pyelftools: pip install it to run this")
    mine = [Note("QEMU", 7, bytes(9)), Note("VMCOREINFO", 0, b"OSRELEASE=6.12\n")]
    head, _ = elf.core_headers([], notes.encode(mine))
    (segment,) = elffile.ELFFile(io.BytesIO(head)).iter_segments()
    theirs = [(n["n_name"], n["n_descdata"]) for n in segment.iter_notes()]
    assert theirs == [(n.name, n.desc) for n in mine]
