"""The picture of windows and shadows."""

import xml.etree.ElementTree as ElementTree
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kjump.peers.memory_map import Resident, Survey, as_svg, cells, for_terminal
from kjump.ranges import Range, RangeSet

MIB = 1 << 20


def survey() -> Survey:
    return Survey(
        ram=RangeSet([Range(0, 96 * MIB)]),
        kernel=RangeSet([Range(8 * MIB, 12 * MIB)]),
        channel=RangeSet([Range(90 * MIB, 92 * MIB)]),
        peers=(
            Resident("left", "6.1.192", RangeSet([Range(16 * MIB, 32 * MIB)]), RangeSet([Range(50 * MIB, 66 * MIB)])),
            Resident("<right>", "6.12", RangeSet([Range(32 * MIB, 48 * MIB)]), RangeSet([Range(70 * MIB, 86 * MIB)])),
        ),
    )


def test_the_terminal_shows_windows_above_their_shadows() -> None:
    lines = for_terminal(survey(), 96).splitlines()
    assert lines[2] == "|" + "." * 8 + "K" * 4 + "." * 4 + "1" * 16 + "2" * 16 + "." * 42 + "cc" + "." * 4 + "|"
    assert lines[4].index("1") - 1 == 50 and lines[4].count("1") == 16
    assert lines[4].index("2") - 1 == 70
    assert "  2  <right>, Linux 6.12: 16 MiB at" in lines[-1]


def test_the_svg_is_small_well_formed_and_names_everybody() -> None:
    text = as_svg(survey())
    root = ElementTree.fromstring(text)
    words = " ".join(e.text or "" for e in root.iter() if e.tag.endswith("text"))
    assert "left, Linux 6.1.192" in words and "<right>" in words and "96 MiB" in words
    assert len(text) < 8000


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30)), min_size=1, max_size=4),
    st.integers(1, 16),
)
def test_a_cell_is_what_most_of_it_is(pieces: list[tuple[int, int]], count: int) -> None:
    kinds = [(str(i), RangeSet([Range.of_size(start, size)])) for i, (start, size) in enumerate(pieces)]
    end = 64
    drawn = cells(kinds, end, count)
    for index in range(count):
        part = range(end * index // count, end * (index + 1) // count)
        on_top = [[k for k, ranges in kinds if at in ranges][-1:] for at in part]
        sizes = Counter(k for found in on_top for k in found)
        assert sizes[drawn[index]] == max(sizes.values(), default=0)
