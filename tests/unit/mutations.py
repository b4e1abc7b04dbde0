"""Damage done to bytes, for tests that a reader either refuses it with FormatError or returns a value."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

from hypothesis import strategies as st

from kjump.errors import FormatError


def damaged(original: bytes) -> st.SearchStrategy[bytes]:
    """Return `original` cut short, with bytes changed, or with a piece taken out; or any bytes at all."""
    places = st.integers(0, max(0, len(original) - 1))
    changes = st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=8)
    return st.one_of(
        places.map(lambda at: original[:at]),
        changes.map(lambda edits: _changed(original, edits)),
        st.tuples(places, places).map(lambda cut: original[: min(cut)] + original[max(cut) :]),
        st.binary(max_size=256),
    )


def survives(read: Callable[[bytes], object], data: bytes) -> None:
    """Call `read(data)`: a value or FormatError is fine; any other error, or much memory, is not."""
    tracemalloc.start()
    try:
        read(data)
    except FormatError as error:
        assert "\n" not in str(error) and str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1_000_000 + 50 * len(data)


def _changed(original: bytes, edits: list[tuple[int, int]]) -> bytes:
    data = bytearray(original)
    for at, value in edits:
        if at < len(data):
            data[at] = value
    return bytes(data)
