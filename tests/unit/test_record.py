"""JSON records: every field is checked where it is read, and whatever is wrong is one FormatError."""

import json
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import FormatError
from kjump.formats.record import Record
from kjump.ranges import Range


class Colour(StrEnum):
    RED = "red"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def record(**fields: object) -> Record:
    return Record(fields, "a thing")


def test_fields_come_back_as_what_they_are() -> None:
    found = record(i=3, n=1.5, f=True, t="x", h="00ff", c="red", r={"a": 1}, l=[{}], s=["a"], k=[1, 2], p=[4, 8])
    assert found.integer("i") == 3
    assert found.number("n") == 1.5
    assert found.number("i") == 3.0
    assert found.flag("f")
    assert found.text("t") == "x"
    assert found.hexadecimal("h", length=2) == b"\0\xff"
    assert found.choice("c", Colour) is Colour.RED
    assert found.record("r").integer("a") == 1
    assert len(found.items("l")) == 1
    assert found.texts("s") == ("a",)
    assert found.integers("k") == (1, 2)
    assert found.range("p") == Range(4, 8)
    assert record(q=[[1, 2]]).ranges("q") == (Range(1, 2),)
    assert found.optional("absent", found.integer, 7) == 7


@pytest.mark.parametrize(
    ("fields", "read", "message"),
    [
        ({}, lambda r: r.integer("x"), "a thing: x is missing"),
        ({"x": None}, lambda r: r.text("x"), "x is missing"),
        ({"x": True}, lambda r: r.integer("x"), "x is true, not an integer"),
        ({"x": 1.0}, lambda r: r.integer("x"), "not an integer"),
        ({"x": -1}, lambda r: r.integer("x"), "must lie between 0"),
        ({"x": "1"}, lambda r: r.number("x"), "not a number"),
        ({"x": 10**400}, lambda r: r.number("x"), "out of range"),
        ({"x": float("nan")}, lambda r: r.number("x"), "out of range"),
        ({"x": 1}, lambda r: r.flag("x"), "not true or false"),
        ({"x": "\ud800"}, lambda r: r.text("x"), "not valid Unicode"),
        ({"x": "abc"}, lambda r: r.text("x", limit=2), "at most 2"),
        ({"x": "0g"}, lambda r: r.hexadecimal("x"), "hexadecimal"),
        ({"x": "00"}, lambda r: r.hexadecimal("x", length=2), "1 bytes, not 2"),
        ({"x": "blue"}, lambda r: r.choice("x", Colour), "not one of red"),
        ({"x": 5}, lambda r: r.record("x"), "a thing: x: 5 stands where a JSON object is expected"),
        ({"x": {}}, lambda r: r.items("x"), "not a list"),
        ({"x": [1]}, lambda r: r.items("x"), "JSON object"),
        ({"x": [1]}, lambda r: r.texts("x"), "not a string"),
        ({"x": [1, 2, 3]}, lambda r: r.integers("x", limit=2), "at most 2"),
        ({"x": [8, 4]}, lambda r: r.range("x"), "pair"),
        ({"x": [8]}, lambda r: r.range("x"), "pair"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, object], read: object, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read(record(**fields))  # type: ignore[operator]


@given(JSON, st.sampled_from(["integer", "number", "flag", "text", "hexadecimal", "record", "items", "texts", "range"]))
def test_any_value_is_read_or_refused(value: object, method: str) -> None:
    try:
        getattr(record(x=value), method)("x")
    except FormatError as error:
        assert "\n" not in str(error)
        assert str(error).startswith("a thing: x")


@given(st.binary())
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        Record.parse(data, "a thing")
    except FormatError:
        with pytest.raises((ValueError, AssertionError)):
            assert isinstance(json.loads(data), dict)
