"""The channel between A and a resident peer: both ends on the same memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import FormatError, UsageError
from kjump.formats.record import JsonObject
from kjump.kexec import mailbox
from kjump.kexec.channel import SIZE, Channel, PageList, Parcel

COOKIE = bytes(range(16))
json_words = st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=20) | st.booleans(), max_size=5)


def both_ends() -> tuple[Channel, Channel]:
    memory = bytearray(SIZE)
    return Channel(memory, COOKIE), Channel(memory, COOKIE)


@given(words=json_words, there=st.binary(max_size=5000), back=st.binary(max_size=5000), sequence=st.integers(1, 2**63))
def test_words_and_bytes_go_both_ways(words: JsonObject, there: bytes, back: bytes, sequence: int) -> None:
    a, b = both_ends()
    a.post(Parcel(sequence, words, there), head=0x1234002, wanted=0x7000000)
    assert b.order() == Parcel(sequence, words, there)
    assert b.head == 0x1234002
    b.report(mailbox.Outcome.DONE, Parcel(sequence, {"resident": True}, back))
    assert a.answer(sequence) == (mailbox.Outcome.DONE, Parcel(sequence, {"resident": True}, back))


def test_an_answer_to_an_earlier_order_is_none() -> None:
    a, b = both_ends()
    a.post(Parcel(1), head=0, wanted=0)
    b.report(mailbox.Outcome.DONE, Parcel(1, {"resident": True}, b"old"))
    a.post(Parcel(2), head=0, wanted=0)
    assert a.answer(2) == (mailbox.Outcome.NONE, Parcel(2))


def test_a_panicked_peer_is_known_by_what_it_noted_before() -> None:
    a, b = both_ends()
    a.post(Parcel(1), head=8, wanted=0)
    b.report(mailbox.Outcome.DONE, Parcel(1, {"resident": True}, b"never meant for A"))
    b.note({"vmcoreinfo": [4096, 1024]}, mailbox.Outcome.PANIC)  # the gate writes the outcome in its place
    assert a.answer(1) == (mailbox.Outcome.PANIC, Parcel(1, {"vmcoreinfo": [4096, 1024]}))


def test_the_wanted_gate_is_where_the_gate_looks_for_it() -> None:
    memory = bytearray(SIZE)
    Channel(memory, COOKIE).post(Parcel(1), head=0, wanted=0xABCDE000)
    assert memory[0xFF8:0x1000] == (0xABCDE000).to_bytes(8, "little")
    assert memory[:16] == COOKIE


def test_a_message_that_does_not_fit_is_refused_before_anything_is_written() -> None:
    a, b = both_ends()
    a.post(Parcel(1, {}, b"first"), head=0, wanted=0)
    with pytest.raises(UsageError, match="too long: 10444"):
        a.post(Parcel(2, {}, bytes(1 << 20)), head=0, wanted=0)
    assert b.order().message == b"first"
    largest = 0xFF000 - 24 - 2
    a.post(Parcel(3, {}, b"x" * largest), head=0, wanted=0)
    assert len(b.order().message) == largest


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        bytes(100),
        Parcel(1, {}, b"message").pack()[:-1],
        Parcel(1, {"a": 1}).pack().replace(b"{", b"["),
        Parcel(1, {"a": 1}).pack().replace(b'{"a":1}', b'"words"'),
    ],
)
def test_a_damaged_parcel_is_refused(damaged: bytes) -> None:
    with pytest.raises(FormatError):
        Parcel.unpack(damaged)


def test_a_mailbox_with_another_cookie_is_not_believed() -> None:
    memory = bytearray(SIZE)
    a = Channel(memory, COOKIE)
    a.post(Parcel(1), head=0, wanted=0)
    memory[0] ^= 1
    with pytest.raises(FormatError, match="overwritten"):
        a.answer(1)


def test_the_page_list_lies_where_the_mailbox_says_and_ends_with_a_zero() -> None:
    memory = bytearray(SIZE)
    pages = ((0x5000, 0x1000000), (0x6000, 0x1001000), (0x9000, 0x1002000))
    Channel(memory, COOKIE).post(Parcel(1), head=0, wanted=0, restart=PageList(0x40000000, pages))
    at = int.from_bytes(memory[0xFF0:0xFF8], "little") - 0x40000000
    words = [int.from_bytes(memory[at + i * 8 : at + i * 8 + 8], "little") for i in range(9)]
    assert words == [0x5000, 0x1000000, 2, 0x9000, 0x1002000, 1, 0, 0, 0]
    Channel(memory, COOKIE).post(Parcel(2), head=0, wanted=0)
    assert memory[0xFF0:0xFF8] == bytes(8), "only once"


def test_more_pages_than_the_channel_holds_are_refused() -> None:
    with pytest.raises(UsageError, match="a list of 70000 scattered pages does not fit"):
        PageList(0, ((0x1000, 0x2000),) * 70000).pack()
    assert len(PageList(0, tuple((0x1000 * i, 0x1000 * i + 0x5000) for i in range(70000))).pack()) == 48
