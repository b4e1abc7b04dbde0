from __future__ import annotations

import json
import struct
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import damaged, survives

from kjump.errors import FormatError
from kjump.formats.superblock import MAX_DETAILS, SUPERBLOCK_SIZE, Details, MemoryUse, Saved, State, Superblock

u64 = st.integers(0, 2**64 - 1)
text = st.text(st.characters(codec="utf-8"), max_size=30)
seconds = st.integers(0, 10**9).map(lambda n: n / 1000)
saves = st.builds(
    Saved,
    kept_bytes=u64,
    image_bytes=u64,
    select_seconds=seconds,
    write_seconds=seconds,
    memory=st.builds(MemoryUse, u64, u64),
    level=st.integers(-100, 22),
)
KNOWN = {"reason", "rolled_back", "saved", "rollback_boot"}
details = st.builds(
    Details,
    reason=text,
    rolled_back=u64,
    saved=st.none() | saves,
    rollback_boot=text,
    others=st.dictionaries(
        text.filter(lambda name: name not in KNOWN), st.none() | st.booleans() | st.integers() | text, max_size=5
    ),
)
superblocks = st.builds(
    Superblock,
    state=st.sampled_from([State.EMPTY, State.ARMED, State.WRITING, State.CONSUMED, State.INVALID]),
    generation=u64,
    cookie=st.binary(min_size=16, max_size=16),
    image_length=u64,
    stream_length=u64,
    header_length=u64,
    seek_table_offset=u64,
    seek_table_length=u64,
    digest=st.binary(min_size=32, max_size=32),
    capacity=u64,
    map_length=u64,
    details=details,
)
SAMPLE = Superblock(
    state=State.COMPLETE,
    generation=3,
    cookie=bytes(range(16)),
    image_length=1000,
    stream_length=5000,
    header_length=400,
    seek_table_offset=900,
    seek_table_length=100,
    digest=bytes(range(32)),
    capacity=1 << 20,
    map_length=4096,
    details=Details("größer"),
)


def changed(at: int, replacement: bytes) -> bytes:
    """The sample with bytes exchanged and the checksum made good again."""
    body = bytearray(SAMPLE.pack()[:-4])
    body[at : at + len(replacement)] = replacement
    return bytes(body) + struct.pack("<I", zlib.crc32(body))


@given(superblocks)
def test_what_is_written_is_read_back(superblock: Superblock) -> None:
    data = superblock.pack()
    assert len(data) == SUPERBLOCK_SIZE
    assert Superblock.unpack(data) == superblock


def test_layout() -> None:
    data = SAMPLE.pack()
    assert data[:24] == b"KJUMPIMG" + struct.pack("<IIQ", 2, 3, 3)
    assert data[24:40] == SAMPLE.cookie
    assert struct.unpack_from("<5Q", data, 40) == (1000, 5000, 400, 900, 100)
    assert data[80:112] == SAMPLE.digest
    text = '{"reason":"größer"}'.encode()
    assert data[112:132] == struct.pack("<QQI", 1 << 20, 4096, len(text))
    assert data[132 : 132 + len(text)] == text
    assert not any(data[132 + len(text) : 4092])
    assert data[4092:] == struct.pack("<I", zlib.crc32(data[:4092]))


def test_evolve() -> None:
    consumed = SAMPLE.evolve(state=State.CONSUMED, details=Details())
    assert (consumed.state, consumed.details, consumed.cookie) == (State.CONSUMED, Details(), SAMPLE.cookie)
    assert SAMPLE.state is State.COMPLETE


@given(damaged(SAMPLE.pack()))
def test_damage_is_refused(data: bytes) -> None:
    survives(Superblock.unpack, data)
    if data != SAMPLE.pack():
        with pytest.raises(FormatError):
            Superblock.unpack(data)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (bytes(4096), "no kjump image here"),
        (b"", "no kjump image here"),
        (SAMPLE.pack()[:-1], "has 4096 bytes, not 4095"),
        (SAMPLE.pack()[:-1] + b"!", "bad checksum"),
        (changed(8, b"\1"), "is of version 1, this kjump knows version 2"),
        (changed(12, b"\x09"), r"a state that is not known \(9\)"),
        (changed(128, struct.pack("<I", MAX_DETAILS + 1)), "details cannot have 3961 bytes"),
        (changed(132, b"["), "not JSON"),
        (changed(132, b"\xff"), "not JSON"),
        (changed(128, struct.pack("<I", 2) + b"[]"), "a JSON object is expected"),
        (changed(128, struct.pack("<I", 3000) + b"[" * 3000), "not JSON"),
        (changed(40, struct.pack("<Q", 999)), "contradict each other"),
        (changed(56, struct.pack("<Q", 5001)), "contradict each other"),
        (changed(112, struct.pack("<Q", 5000)), "contradict each other"),
        (changed(120, struct.pack("<Q", 1 << 20)), "contradict each other"),
    ],
)
def test_what_is_wrong(data: bytes, text: str) -> None:
    with pytest.raises(FormatError, match=text):
        Superblock.unpack(data)


def test_what_does_not_fit() -> None:
    room = MAX_DETAILS - len('{"x":""}')
    largest = Details(others={"x": "a" * room})
    assert Superblock.unpack(Superblock(details=largest).pack()).details == largest
    for superblock, text in [
        (Superblock(details=Details(others={"x": "a" * (room + 1)})), "details take 3961 bytes, at most 3960 fit"),
        (Superblock(cookie=b"short"), "must have 16 bytes"),
        (Superblock(digest=b"short"), "its digest 32"),
        (Superblock(generation=2**64), "out of range"),
        (Superblock(capacity=-1), "out of range"),
    ]:
        with pytest.raises(FormatError, match=text):
            superblock.pack()


@pytest.mark.parametrize(
    "fields",
    [
        {"reason": 1},
        {"rolled_back": "1"},
        {"rolled_back": -1},
        {"saved": {}},
        {"saved": [1]},
        {"saved": {"kept_bytes": 1}},
        {"rollback_boot": []},
    ],
)
def test_damaged_details_are_a_damaged_superblock(fields: dict[str, object]) -> None:
    written = json.dumps(fields).encode()
    data = changed(128, struct.pack("<I", len(written)) + written)
    with pytest.raises(FormatError, match="the superblock's details: "):
        Superblock.unpack(data)


def test_what_a_newer_version_wrote_is_written_again() -> None:
    newer = b'{"reason":"x","since":{"a":[1,null]}}'
    found = Superblock.unpack(changed(128, struct.pack("<I", len(newer)) + newer.ljust(100, b"\0")))
    again = Superblock.unpack(found.evolve(details=found.details.because("another")).pack())
    assert again.details == Details("another", others={"since": {"a": [1, None]}})


@given(details, st.text())
def test_any_reason_fits_in_any_superblock(found: Details, reason: str) -> None:
    crowded = replace(found, others={"x": "ä" * 1500})
    for given_details in (found, crowded):
        superblock = Superblock(details=given_details.because(reason + "ö" * 2000))
        assert Superblock.unpack(superblock.pack()).details == superblock.details
