"""Layouts: the places and numbers that Python shares with assembly and C, each said once.

Whoever owns a layout says it in Python (`kjump.gates.layouts`, `kjump.emulator.control`); the build writes the C
headers from it (build-aux/headers.py), and Python packs and unpacks by it. So a field cannot be on one side only:
assembly and C do not build with a name that is not in the header, and `Layout.check` refuses a class whose fields are
others.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_WIDTH = 32
_LINE = 120
_C_TYPES = {"Q": "uint64_t", "I": "uint32_t"}


@dataclass(frozen=True)
class Field:
    """A field: its `kind` as `struct` writes it (repeated only if bytes), and a `note` for whoever reads the header.

    Without `at` (bytes from the beginning) it lies right behind the field before it.
    """

    name: str
    note: str = ""
    kind: str = "Q"
    at: int | None = None


class Layout:
    """Little-endian fields at fixed places; in headers `FIELD` is `PREFIX_FIELD`, its offset."""

    def __init__(self, prefix: str, *fields: Field, start: int = 0) -> None:
        """Give each field its place, from byte `start` on; ValueError when two overlap or share a name."""
        self.prefix = prefix
        self._fields = {field.name: field for field in fields}
        self._offsets: dict[str, int] = {}
        at = start
        for field in fields:
            if field.at is not None and field.at < at:
                raise ValueError(f"{prefix}: the field {field.name} begins within the one before it")
            self._offsets[field.name] = at = at if field.at is None else field.at
            at += struct.calcsize(f"<{field.kind}")
        if len(self._fields) != len(fields):
            raise ValueError(f"{prefix}: two fields have the same name")
        self.end = at

    def offset(self, name: str) -> int:
        """Return where the field `name` lies; KeyError when there is none."""
        return self._offsets[name]

    def names(self, first: str | None = None, last: str | None = None) -> list[str]:
        """Return the names of the fields from `first` to `last`, both included (default: all)."""
        names = [*self._fields]
        return names[names.index(first) if first else 0 : names.index(last) + 1 if last else None]

    def struct(self, first: str | None = None, last: str | None = None) -> struct.Struct:
        """Return the fields from `first` to `last` as one Struct, to be used at the offset of the first."""
        names = self.names(first, last)
        text, at = "<", self._offsets[names[0]]
        for name in names:
            text += f"{self._offsets[name] - at}x" if self._offsets[name] > at else ""
            text += f" {self._fields[name].kind}"
            at = self._offsets[name] + struct.calcsize(f"<{self._fields[name].kind}")
        return struct.Struct(text)

    def check(self, cls: type, first: str | None = None, last: str | None = None) -> None:
        """Raise LayoutError unless the dataclass `cls` has just the fields from `first` to `last`, in this order."""
        check_names(f"the layout {self.prefix}", self.names(first, last), cls)

    def definitions(self) -> Iterator[str]:
        """Yield the lines of a C header."""
        for name, field in self._fields.items():
            yield _define(f"{self.prefix}_{name.upper()}", self._offsets[name], field.note)


class LayoutError(TypeError):
    """Two sides of a layout say different things."""


def check_names(what: str, names: list[str], cls: type) -> None:
    """Raise LayoutError unless the dataclass `cls` has the fields `names`, which are those of `what`, in this order."""
    own = [field.name for field in dataclasses.fields(cls)]
    if own != names:
        odd = sorted({*own} ^ {*names})
        wrong = f"only one of them has {', '.join(odd)}" if odd else "their order differs"
        raise LayoutError(f"{cls.__module__}.{cls.__name__} and {what} have different fields: {wrong}")


class Numbers:
    """Named numbers; in headers `NAME` is `PREFIX_NAME`."""

    def __init__(self, prefix: str, *numbers: tuple[str, int, str]) -> None:
        """Take (name, number, note) of each."""
        self.prefix = prefix
        self._numbers = {name: (number, note) for name, number, note in numbers}

    def __getitem__(self, name: str) -> int:
        """Return the number `name`; KeyError when there is none."""
        return self._numbers[name][0]

    def definitions(self) -> Iterator[str]:
        """Yield the lines of a C header."""
        for name, (number, note) in self._numbers.items():
            yield _define(f"{self.prefix}_{name}", number, note)

    def symbols(self) -> str:
        """Return the text of a linker script that defines the numbers as symbols."""
        return "".join(f"{self.prefix}_{name} = {number:#x};\n" for name, (number, _) in self._numbers.items())


def _define(name: str, value: int, note: str) -> str:
    return f"#define {name:<{_WIDTH}} {value:#x}{f' /* {note} */' if note else ''}"


def c_struct(name: str, fields: Iterable[tuple[str, str]]) -> str:
    """Return the declaration of `struct name` with the fields (name, kind as `struct` writes it), for C alone."""
    members = "".join(f"    {_C_TYPES[kind]} {field};\n" for field, kind in fields)
    return f"#ifndef __ASSEMBLER__\n#include <stdint.h>\n\nstruct {name} {{\n{members}}};\n#endif"


def comment(text: str) -> str:
    """Return `text` as a C comment, its blanks and lines laid out anew."""
    import textwrap  # by the build alone: a second kernel's init imports this module

    words = " ".join(text.split())
    if len(words) <= _LINE - len("/*  */"):
        return f"/* {words} */"
    return "/*\n" + textwrap.indent(textwrap.fill(words, _LINE - 3), " * ") + "\n */"


def header(name: str, note: str, parts: Iterable[Layout | Numbers | str]) -> str:
    """Return the C header `name`: `note` in front, then layouts and numbers, and text (comments, structs) as it is."""
    guard = f"KJUMP_{name.upper().replace('.', '_')}"
    blocks = [part if isinstance(part, str) else "\n".join(part.definitions()) for part in parts]
    body = "\n\n".join([comment(note), f"#ifndef {guard}\n#define {guard}", *blocks, "#endif"])
    return f"/* Written by build-aux/headers.py; do not edit. */\n{body}\n"
