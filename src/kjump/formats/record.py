"""JSON objects that cross a process, a disk or a jump: read field by field, each checked where it is read.

A type that is sent has `to_json`, which returns a JsonObject, and `from_json`, which takes a Record and reads every
field with one of its methods. Whatever is wrong (a missing field, a wrong type, a value out of range) is one
FormatError that names the field. Fields that nobody asks for are ignored, so that a newer writer may add some.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TypeVar, Union

from kjump.errors import FormatError
from kjump.ranges import Range

Json = Union[None, bool, int, float, str, list["Json"], dict[str, "Json"]]  # noqa: UP007  # recursive: needs strings
"""Any JSON value."""
JsonObject = dict[str, Json]
"""A JSON object."""

U64 = (1 << 64) - 1
T = TypeVar("T")
E = TypeVar("E", bound=Enum)
_TEXT_LIMIT = 1 << 20
_LIST_LIMIT = 1 << 20


class Record:
    """The fields of a JSON object; `what` says in messages what the object is ("the image's facts")."""

    def __init__(self, value: object, what: str) -> None:
        """Take a decoded JSON value; FormatError when it is not an object."""
        if not isinstance(value, Mapping):
            raise FormatError(f"{what}: {_shown(value)} stands where a JSON object is expected")
        self._fields = value
        self.what = what

    @classmethod
    def parse(cls, text: str | bytes, what: str) -> Record:
        """Read `text` as a JSON object; FormatError when it is not one."""
        try:
            value: object = json.loads(text)
        except (ValueError, RecursionError):
            raise FormatError(f"{what}: this is not JSON") from None
        return cls(value, what)

    def __contains__(self, name: str) -> bool:
        """Whether there is a field `name` with a value other than null."""
        return self._fields.get(name) is not None

    def others(self, *known: str) -> JsonObject:
        """Return the fields whose names are not among `known`, as they are: what a newer writer added, to be kept."""
        return {str(name): value for name, value in self._fields.items() if name not in known}

    def names(self) -> list[str]:
        """Return the names of all fields."""
        return [str(name) for name in self._fields]

    def integer(self, name: str, *, low: int = 0, high: int = U64) -> int:
        """Return the integer `name`, from `low` to `high`; FormatError."""
        value = self._value(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(name, value, "an integer")
        if not low <= value <= high:
            raise FormatError(f"{self.what}: {name} is {_shown(value)}; it must lie between {low} and {high}")
        return value

    def number(self, name: str, *, low: float = -math.inf, high: float = math.inf) -> float:
        """Return the number `name`, from `low` to `high` and finite; FormatError."""
        value = self._value(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._wrong(name, value, "a number")
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if not math.isfinite(found) or not low <= found <= high:
            raise FormatError(f"{self.what}: {name} is {_shown(value)}, which is out of range")
        return found

    def flag(self, name: str) -> bool:
        """Return the boolean `name`; FormatError."""
        value = self._value(name)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str, *, limit: int = _TEXT_LIMIT) -> str:
        """Return the string `name`, at most `limit` characters that can be encoded in UTF-8; FormatError."""
        value = self._value(name)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        if len(value) > limit:
            raise FormatError(f"{self.what}: {name} has {len(value)} characters; at most {limit} are allowed")
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise FormatError(f"{self.what}: {name} is not valid Unicode")
        return value

    def hexadecimal(self, name: str, *, length: int | None = None) -> bytes:
        """Return the bytes that the string `name` has in hexadecimal digits, `length` of them if given; FormatError."""
        value = self.text(name)
        try:
            found = bytes.fromhex(value)
        except ValueError:
            raise self._wrong(name, value, "hexadecimal digits") from None
        if length is not None and len(found) != length:
            raise FormatError(f"{self.what}: {name} has {len(found)} bytes, not {length}")
        return found

    def choice(self, name: str, kind: type[E]) -> E:
        """Return the member of the enumeration `kind` whose value is the field `name`; FormatError."""
        value = self._value(name)
        for member in kind:
            if type(value) is type(member.value) and value == member.value:
                return member
        raise self._wrong(name, value, "one of " + ", ".join(str(m.value) for m in kind))

    def record(self, name: str) -> Record:
        """Return the object `name`; FormatError."""
        return Record(self._value(name), f"{self.what}: {name}")

    def items(self, name: str, *, limit: int = _LIST_LIMIT) -> list[Record]:
        """Return the objects in the list `name`, at most `limit`; FormatError."""
        return [Record(item, f"{self.what}: {name}[{i}]") for i, item in enumerate(self._list(name, limit))]

    def texts(self, name: str, *, limit: int = _LIST_LIMIT, length: int = _TEXT_LIMIT) -> tuple[str, ...]:
        """Return the strings in the list `name`, at most `limit`, each of `length` characters at most; FormatError."""
        return tuple(Record({name: item}, self.what).text(name, limit=length) for item in self._list(name, limit))

    def rows(self, name: str, *, length: int, high: int = U64, limit: int = _LIST_LIMIT) -> list[tuple[int, ...]]:
        """Return the lists of `length` integers up to `high` in the list `name`, at most `limit`; FormatError."""
        found = [
            Record({name: item}, self.what).integers(name, high=high, limit=length) for item in self._list(name, limit)
        ]
        if any(len(row) != length for row in found):
            raise FormatError(f"{self.what}: {name} has an item that is not a list of {length} integers")
        return found

    def integers(self, name: str, *, low: int = 0, high: int = U64, limit: int = _LIST_LIMIT) -> tuple[int, ...]:
        """Return the integers in the list `name`, at most `limit`, each from `low` to `high`; FormatError."""
        return tuple(
            Record({name: item}, self.what).integer(name, low=low, high=high) for item in self._list(name, limit)
        )

    def range(self, name: str) -> Range:
        """Return the half-open range whose start and end are the two integers in the list `name`; FormatError."""
        found = self.integers(name, limit=2)
        if len(found) != 2 or found[0] > found[1]:
            raise self._wrong(name, self._value(name), "a pair of start and end")
        return Range(*found)

    def bounded(self, name: str, *, high: int, unit: int = 1) -> Range:
        """Return the range `name`, which is not empty, whole `unit`s, and ends at `high` at most; FormatError."""
        found = self.range(name)
        if not found.size or found.end > high or found.start % unit or found.end % unit:
            raise self._wrong(name, self._value(name), f"a range below {high:#x} in whole units of {unit} bytes")
        return found

    def ranges(self, name: str, *, limit: int = _LIST_LIMIT) -> tuple[Range, ...]:
        """Return the half-open ranges in the list `name`, at most `limit`, each a pair of integers; FormatError."""
        return tuple(Record({name: item}, self.what).range(name) for item in self._list(name, limit))

    def map(self, name: str, read: Callable[[Record], T]) -> T:
        """Return what `read` (a type's `from_json`) makes of the object `name`; FormatError."""
        return read(self.record(name))

    def maybe(self, name: str, read: Callable[[Record], T]) -> T | None:
        """Return what `read` makes of the object `name`, None when it is missing or null; FormatError."""
        return read(self.record(name)) if name in self else None

    def optional(self, name: str, read: Callable[[str], T], default: T) -> T:
        """Return what `read` (a method of this record) gives for `name`; `default` when it is missing or null."""
        return read(name) if name in self else default

    def _value(self, name: str) -> object:
        value: object = self._fields.get(name)
        if value is None:
            raise FormatError(f"{self.what}: {name} is missing")
        return value

    def _list(self, name: str, limit: int) -> list[object]:
        value = self._value(name)
        if not isinstance(value, list | tuple):
            raise self._wrong(name, value, "a list")
        if len(value) > limit:
            raise FormatError(f"{self.what}: {name} has {len(value)} items; at most {limit} are allowed")
        return list(value)

    def _wrong(self, name: str, value: object, wanted: str) -> FormatError:
        return FormatError(f"{self.what}: {name} is {_shown(value)}, not {wanted}")


def _shown(value: object) -> str:
    """Return `value` as JSON, cut short: a message is one line."""
    try:
        text = json.dumps(value, ensure_ascii=True)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."
