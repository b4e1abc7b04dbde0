"""What the targets have in common: the one kind of error they may raise, and inputs that are damaged seeds."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from kjump.errors import KjumpError

_EDIT = struct.Struct("<HBB")
_HEAD = 1 << 14


@contextmanager
def clean_errors() -> Iterator[None]:
    """Let errors for people pass, if they are one sentence; everything else is a find."""
    try:
        yield
    except KjumpError as error:
        text = str(error)
        assert text and "\n" not in text, text


def damaged(seeds: list[bytes], data: bytes) -> bytes:
    """Return what an input stands for: any bytes, or one of `seeds` with edits, so that small inputs reach far.

    The first byte says which: 255 the rest as it is, else a seed by number. Each edit is a place (in the first 16 KiB,
    or a 32th as fine anywhere), a length by its two low bits, and a byte to put there; the last may cut the seed short.
    """
    if not data:
        return b""
    if data[0] == 255:
        return data[1:]
    found = bytearray(seeds[data[0] % len(seeds)])
    for place, kind, value in _EDIT.iter_unpack(data[1 : 1 + (len(data) - 1) // _EDIT.size * _EDIT.size]):
        at = place % _HEAD if not kind & 0x80 else place * 32
        length = (1, 2, 4, 8)[kind & 3]
        if at + length <= len(found):
            found[at : at + length] = bytes([value]) * length if not kind & 4 else bytes([value]).ljust(length, b"\0")
        if kind & 0x78 == 0x78:
            del found[at:]
    return bytes(found)


def whole(seeds: list[bytes]) -> list[bytes]:
    """Return inputs for `damaged` that stand for the seeds as they are, and one that is not made of any."""
    return [bytes([number]) for number in range(len(seeds))] + [b"\xff" + seeds[0][:512]]
