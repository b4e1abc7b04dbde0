"""JSON values with one thing wrong: a key removed, or a value replaced by one of another type."""

import copy
from collections.abc import Iterator
from typing import Any

HUGE = 1 << 70
OTHERS: list[Any] = [None, True, 7, -1, HUGE, 1.5, "text", [], ["x"], {}, {"x": 1}]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Go through the places of all values within `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    """Return what stands at the place `path`."""
    for key in path:
        value = value[key]
    return value


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy of `value` with `new` at the place `path`."""
    found = copy.deepcopy(value)
    at(found, path[:-1])[path[-1]] = new
    return found


def removed(value: Any, path: tuple[Any, ...]) -> Any:
    """Return a copy of `value` without what stands at the place `path`."""
    found = copy.deepcopy(value)
    del at(found, path[:-1])[path[-1]]
    return found


def kind(value: Any) -> str:
    """Return the JSON type of `value`; whole numbers and others are not told apart."""
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else type(value).__name__
