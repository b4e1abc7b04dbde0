"""A picture of physical memory while peers are resident: windows, low memory, and the shadows that hold A's contents.

A picture consists of rows of cells of equal size; a cell shows the kind of most of its bytes. It is drawn for a
terminal, or as a small SVG.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from kjump.ranges import Range, RangeSet

_SVG_CELLS = 240
_CELL_WIDTH = 4
_ROW_HEIGHT = 34
_LEFT = 10
_COLOURS = {"ram": "#e8e8e8", "kernel": "#8f8f8f", "channel": "#222222", "reserved": "#ffffff"}
_PEER_COLOURS = ("#4477aa", "#cc6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#000000")
_MIB = 1 << 20


@dataclass(frozen=True)
class Resident:
    """A peer in the picture: `place` is its window and low memory, `shadow` the pages that hold its contents while A
    runs.

    Both are physical ranges in bytes.
    """

    name: str
    release: str
    place: RangeSet
    shadow: RangeSet


@dataclass(frozen=True)
class Survey:
    """The contents of a picture; all ranges are physical, in bytes."""

    ram: RangeSet
    kernel: RangeSet
    channel: RangeSet
    peers: tuple[Resident, ...]

    @property
    def end(self) -> int:
        """The physical address at which RAM ends."""
        return max((r.end for r in self.ram), default=0)

    def rows(self) -> list[tuple[str, list[tuple[str, RangeSet]]]]:
        """Return the rows from top to bottom: a title, and (kind, ranges) pairs, the later ones drawn on top."""
        fixed = [("ram", self.ram), ("kernel", self.kernel), ("channel", self.channel)]
        places = [(p.name, p.place) for p in self.peers]
        shadows = [(p.name, p.shadow) for p in self.peers]
        return [
            ("while a peer runs: its window and low memory", fixed + places),
            ("while this system runs: where they are", fixed + shadows),
        ]


def cells(kinds: Sequence[tuple[str, RangeSet]], end: int, count: int) -> list[str]:
    """Return for each of `count` equal parts of [0, end) the kind that fills most of it; "" when no kind is in it.

    Where kinds overlap, the later one in `kinds` counts.
    """
    uncovered = list(_without_later(kinds))
    found = []
    for index in range(count):
        part = RangeSet([Range(end * index // count, end * (index + 1) // count)])
        sizes = {kind: (ranges & part).size for kind, ranges in uncovered}
        best = max(sizes, key=lambda kind: sizes[kind], default="")
        found.append(best if sizes.get(best) else "")
    return found


def _without_later(kinds: Sequence[tuple[str, RangeSet]]) -> Iterable[tuple[str, RangeSet]]:
    for index, (kind, ranges) in enumerate(kinds):
        for _, later in kinds[index + 1 :]:
            ranges = ranges - later
        yield kind, ranges


def legend(survey: Survey) -> list[tuple[str, str]]:
    """Return (kind, description) for each kind that is drawn."""
    words = [("ram", "this system's memory"), ("kernel", "its kernel"), ("channel", "the channel")]
    for peer in survey.peers:
        shown = ", ".join(str(r) for r in peer.place)
        words.append((peer.name, f"{peer.name}, Linux {peer.release}: {peer.place.size // _MIB} MiB at {shown}"))
    return words


def for_terminal(survey: Survey, width: int = 96) -> str:
    """Return the picture as text, `width` columns wide."""
    signs = {"ram": ".", "kernel": "K", "channel": "c", "": " "}
    signs |= {p.name: "0123456789abcdef"[(i + 1) % 16] for i, p in enumerate(survey.peers)}
    lines = [f"physical memory, {survey.end // _MIB} MiB; a column is {survey.end / width / _MIB:.1f} MiB"]
    for title, kinds in survey.rows():
        lines += [title, "|" + "".join(signs[kind] for kind in cells(kinds, survey.end, width)) + "|"]
    lines += [f"  {signs[kind]}  {words}" for kind, words in legend(survey)]
    return "\n".join(lines)


def as_svg(survey: Survey) -> str:
    """Return the picture as an SVG document."""
    colours = _COLOURS | {p.name: _PEER_COLOURS[i % len(_PEER_COLOURS)] for i, p in enumerate(survey.peers)}
    width = _SVG_CELLS * _CELL_WIDTH + 2 * _LEFT
    parts: list[str] = []
    top = 30
    parts.append(_text(_LEFT, 16, f"physical memory, {survey.end // _MIB} MiB"))
    for title, kinds in survey.rows():
        parts.append(_text(_LEFT, top + 8, title))
        parts += _bar(cells(kinds, survey.end, _SVG_CELLS), top + 14, colours)
        top += _ROW_HEIGHT + 26
    for kind, words in legend(survey):
        parts.append(f'<rect x="{_LEFT}" y="{top}" width="12" height="12" fill="{colours[kind]}"/>')
        parts.append(_text(_LEFT + 18, top + 10, words))
        top += 18
    size = f'width="{width}" height="{top + 4}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def _bar(kinds: Sequence[str], top: int, colours: dict[str, str]) -> Iterable[str]:
    at = 0
    for kind, run in groupby(kinds):
        count = len(list(run))
        if kind:
            x, width = _LEFT + at * _CELL_WIDTH, count * _CELL_WIDTH
            yield f'<rect x="{x}" y="{top}" width="{width}" height="{_ROW_HEIGHT}" fill="{colours[kind]}"/>'
        at += count
    frame = f'x="{_LEFT}" y="{top}" width="{_SVG_CELLS * _CELL_WIDTH}" height="{_ROW_HEIGHT}"'
    yield f'<rect {frame} fill="none" stroke="#555555"/>'


def _text(x: int, y: int, words: str) -> str:
    for plain, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        words = words.replace(plain, escaped)
    return f'<text x="{x}" y="{y}">{words}</text>'
