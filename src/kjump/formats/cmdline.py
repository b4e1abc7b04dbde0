"""The kernel's command line: words separated by blanks, double quotes, nothing else.

    word      = name | name=value | "name=value" | name="value"
    blank     = tab, newline, vertical tab, form feed, carriage return, space, 0xa0 (the kernel's isspace: Latin-1)

A double quote begins or ends a part in which blanks do not separate; one that is not closed runs to the end of the
line. Quotes that enclose a word or a value are taken away, others stay. Apostrophes, backslashes and # are ordinary
characters. A word `--` ends the kernel's parameters: what follows is handed to init as arguments, up to the next `--`.
Names are equal when they differ in `-` and `_` only. Of a parameter given several times the last one counts, but for
those of which there may be several (`console=`).

The line is bytes, of no particular encoding. Here it is a `str` with undecodable bytes as surrogates (PEP 383).
Source: next_arg() and parse_args() of Linux 6.1 and 6.12 (lib/cmdline.c, kernel/params.c, lib/ctype.c, init/main.c).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kjump.errors import PlanError

_WORD = re.compile(rb'(?:[^"\t-\r \xa0]|"[^"]*(?:"|\Z))+')
_END = "--"


@dataclass(frozen=True)
class Parameter:
    """One word: `name` and `value` as the kernel takes them (None: no `=`), `written` as it stands on the line."""

    name: str
    value: str | None
    written: str

    @property
    def closed(self) -> bool:
        """Whether other words can follow it: no quote in it is left open."""
        return self.written.count('"') % 2 == 0

    def is_called(self, name: str) -> bool:
        """Tell whether this is the parameter `name`, which may be written with `-` for `_`."""
        return canonical(self.name) == canonical(name)


@dataclass(frozen=True)
class CommandLine:
    """A line that was read: the kernel's `parameters` in their order, and the words for init."""

    parameters: tuple[Parameter, ...]
    init_arguments: tuple[Parameter, ...] = ()

    def __contains__(self, name: str) -> bool:
        """Tell whether the parameter `name` is there, with a value or without."""
        return any(p.is_called(name) for p in self.parameters)

    def values(self, name: str) -> list[str | None]:
        """Return the values of all parameters `name`, in their order; None is one without `=`."""
        return [p.value for p in self.parameters if p.is_called(name)]

    def get(self, name: str) -> str | None:
        """Return the value of the parameter `name` that counts, the last; None when there is none, or no `=`."""
        return next(reversed(self.values(name)), None)

    def options(self) -> dict[str, str]:
        """Return canonical name -> the value that counts; an empty string for a parameter without `=`.

        They are in the order of the words that count, so of `ro` and `rw` the later one is told.
        """
        found: dict[str, str] = {}
        for parameter in self.parameters:
            found.pop(canonical(parameter.name), None)
            found[canonical(parameter.name)] = parameter.value or ""
        return found


def canonical(name: str) -> str:
    """Return the one spelling for all names that are equal to the kernel."""
    return name.replace("-", "_")


def decode(line: bytes) -> str:
    """Return a line of bytes as text, from which `encode` makes the same bytes; never fails."""
    return line.decode("utf-8", "surrogateescape")


def encode(line: str) -> bytes:
    """Return the bytes of a line; PlanError when a kernel cannot be given it (a NUL, or no text at all)."""
    if "\0" in line:
        raise PlanError(f"a kernel's command line cannot hold a NUL: {line!r}")
    try:
        return line.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise PlanError(f"this cannot be written on a kernel's command line: {line!r}") from None


def parse(line: bytes | str) -> CommandLine:
    """Read a command line up to its end or a NUL; every line means something to the kernel, so this never fails."""
    data = line if isinstance(line, bytes) else _any_bytes(line)
    words = [_parameter(match[0]) for match in _WORD.finditer(data.partition(b"\0")[0])]
    kernel, rest = _until_end(words)
    return CommandLine(tuple(kernel), tuple(_until_end(rest)[0]))


def _any_bytes(line: str) -> bytes:
    try:
        return line.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # surrogates that stand for no byte: this did not come from a kernel
        return line.encode("utf-8", "surrogatepass")


def _until_end(words: list[Parameter]) -> tuple[list[Parameter], list[Parameter]]:
    """Return the words before `--`, and those behind it."""
    for index, word in enumerate(words):
        if word.name == _END and word.value is None:
            return words[:index], words[index + 1 :]
    return words, []


def _parameter(written: bytes) -> Parameter:
    text = written.removeprefix(b'"')
    quoted = text != written
    # An equals sign at the very beginning is part of the name.
    equals = text.find(b"=", 1)
    name, value = (text, None) if equals < 0 else (text[:equals], text[equals + 1 :])
    last = name if value is None else value
    if value and value.startswith(b'"'):
        last = value[1:].removesuffix(b'"')
    elif quoted:
        last = last.removesuffix(b'"')
    if value is None:
        return Parameter(decode(last), None, decode(written))
    return Parameter(decode(name), decode(last), decode(written))


def word(name: str, value: str | None = None) -> str:
    """Return how `name` and `value` are to be written, with quotes if need be.

    PlanError when it cannot be written so that the kernel reads the same: a double quote in a value with blanks.
    """
    plain = name if value is None else f"{name}={value}"
    for written in (plain, f'{name}="{value or ""}"', f'"{plain}"'):
        found = parse(encode(written)).parameters
        if [(p.name, p.value, p.closed) for p in found] == [(name, value, True)]:
            return written
    raise PlanError(
        f"{plain!r} cannot be written on a kernel's command line: it knows no double quote inside a value with blanks, "
        "nor a single one"
    )


def join(parts: Iterable[str]) -> str:
    """Return one line with the words of all `parts`, the kernel's parameters first, what is for init behind `--`.

    PlanError when a part has a quote that is not closed, which would swallow what follows, or cannot be encoded.
    """
    lines = [(part, parse(encode(part))) for part in parts]
    for part, line in lines:
        if not all(p.closed for p in (*line.parameters, *line.init_arguments)):
            raise PlanError(f"a double quote is not closed in the command line {part!r}")
    kernel = [p.written for _, line in lines for p in line.parameters]
    init = [p.written for _, line in lines for p in line.init_arguments]
    return " ".join([*kernel, *([_END, *init] if init else [])])


def rewritten(parameters: Iterable[Parameter]) -> Iterator[str]:
    """Yield `parameters` as they can stand anywhere on a line.

    Left out is what can be last on a line only: a quote that is open inside a word, which the kernel cannot use either.
    """
    for parameter in parameters:
        if parameter.closed:
            yield parameter.written
        else:
            try:
                yield word(parameter.name, parameter.value)
            except PlanError:
                continue
