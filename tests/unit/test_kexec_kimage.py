"""The shadow, against a kernel's swap played out on bytes."""

import random
import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import FormatError, HostError
from kjump.kexec import kimage
from kjump.kexec.kimage import ParkedMemory, Shadow, ShadowRun, walk
from kjump.memory import PAGE_SIZE, BytesMemory
from kjump.ranges import Range, RangeSet

PAGES = 64


def indirection(pairs: list[tuple[int, int]], list_pages: list[int], memory: bytearray) -> int:
    """Write the list that a kernel would keep for `pairs` (destination, source); return its head entry."""
    words = []
    last = None
    for destination, source in pairs:
        if destination != last:
            words.append(destination * PAGE_SIZE | kimage.IND_DESTINATION)
        words.append(source * PAGE_SIZE | kimage.IND_SOURCE)
        last = destination + 1
    words.append(kimage.IND_DONE)
    room = PAGE_SIZE // 8 - 1
    chunks = [words[i : i + room] for i in range(0, len(words), room)]
    head = list_pages[0] * PAGE_SIZE | kimage.IND_INDIRECTION
    for index, chunk in enumerate(chunks):
        if index + 1 < len(chunks):
            chunk = [*chunk, list_pages[index + 1] * PAGE_SIZE | kimage.IND_INDIRECTION]
        at = list_pages[index] * PAGE_SIZE
        struct.pack_into(f"<{len(chunk)}Q", memory, at, *chunk)
    return head


def swap(memory: bytearray, pairs: list[tuple[int, int]]) -> None:
    for destination, source in pairs:
        a, b = destination * PAGE_SIZE, source * PAGE_SIZE
        memory[a : a + PAGE_SIZE], memory[b : b + PAGE_SIZE] = (
            memory[b : b + PAGE_SIZE],
            memory[a : a + PAGE_SIZE],
        )


@given(seed=st.integers(0, 1 << 32), count=st.integers(1, 24))
def test_parked_memory_reads_as_before_the_swap(seed: int, count: int) -> None:
    generator = random.Random(seed)
    memory = bytearray(generator.randbytes(PAGES * PAGE_SIZE))
    start = generator.randrange(PAGES - 1 - count)
    destinations = list(range(start, start + count))
    others = [p for p in range(PAGES - 1) if p not in destinations]
    sources = [d if generator.random() < 0.2 else others.pop(generator.randrange(len(others))) for d in destinations]
    pairs = list(zip(destinations, sources, strict=True))
    list_page = PAGES - 1
    head = indirection(pairs, [list_page], memory)
    before = bytes(memory)
    swap(memory, pairs)
    found = Shadow(walk(BytesMemory(memory).read, head))
    assert [
        (d, s)
        for r in found.runs
        for d, s in zip(range(r.destination, r.destination + r.pages), range(r.source, r.source + r.pages), strict=True)
    ] == pairs
    parked = ParkedMemory(BytesMemory(memory), found)
    for page in set(range(PAGES)) - set(sources):
        assert parked.read(page * PAGE_SIZE, PAGE_SIZE) == before[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
    address = generator.randrange(start * PAGE_SIZE, (start + count) * PAGE_SIZE)
    if not set(destinations) & set(sources):
        length = min(5000, (start + count) * PAGE_SIZE - address)
        assert parked.read(address, length) == before[address : address + length]


def test_a_list_over_several_pages_is_followed() -> None:
    memory = bytearray(PAGE_SIZE * 2048)
    pairs = [(d, 1100 + d * 2 % 900) for d in range(3, 800)]
    head = indirection(pairs, [1, 2], memory)
    assert sum(r.pages for r in walk(BytesMemory(memory).read, head)) == len(pairs)


@pytest.mark.parametrize("head", [0, 0x5000, 0x5000 | kimage.IND_SOURCE])
def test_what_is_no_list_is_refused(head: int) -> None:
    with pytest.raises(FormatError, match="indirection list"):
        walk(BytesMemory(bytes(PAGE_SIZE * 8)).read, head)


def test_a_list_that_does_not_end_is_refused() -> None:
    memory = bytearray(PAGE_SIZE * 4)
    head = 1 * PAGE_SIZE | kimage.IND_INDIRECTION
    struct.pack_into("<Q", memory, PAGE_SIZE, 2 * PAGE_SIZE | kimage.IND_DESTINATION)
    for at in range(8, PAGE_SIZE, 8):
        struct.pack_into("<Q", memory, PAGE_SIZE + at, 3 * PAGE_SIZE | kimage.IND_SOURCE)
    with pytest.raises(FormatError, match="does not end"):
        walk(BytesMemory(memory).read, head)
    with pytest.raises(FormatError, match="has 7 bytes"):
        walk(lambda address, length: bytes(7), head)
    with pytest.raises(FormatError, match="no memory at physical address 0x1000"):
        walk(BytesMemory(bytes(PAGE_SIZE)).read, head)


def test_runs_are_those_of_the_entries_one_by_one() -> None:
    generator = random.Random(7)
    for _ in range(200):
        pairs: list[tuple[int, int]] = []
        at = 0
        for _ in range(generator.randrange(1, 30)):
            at += generator.choice((1, 1, 1, 3))
            near = pairs[-1][1] + 1 if pairs and generator.random() < 0.7 else generator.randrange(50, 90)
            pairs.append((at, near))
        memory = bytearray(PAGE_SIZE * 2)
        found = walk(BytesMemory(memory).read, indirection(pairs, [1], memory))
        assert [(d + i, s + i) for d, s, n in found for i in range(n)] == pairs
        assert all(
            after.destination != before.destination + before.pages or after.source != before.source + before.pages
            for before, after in pairwise(found)
        ), "what belongs together is one run"


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(100, 140), st.integers(1, 5)),
        max_size=6,
        unique_by=lambda t: t[0],
    )
)
def test_packed_runs_come_back(items: list[tuple[int, int, int]]) -> None:
    runs = [ShadowRun(d * 8, s * 8, n) for d, s, n in items]
    again = Shadow.unpack(Shadow(runs).pack())
    assert again.runs == Shadow(runs).runs
    placed = again.place(Range(0, 400))
    assert sum(n for _, _, n in placed) == 400
    assert [f for f, _, _ in placed] == sorted(f for f, _, _ in placed)


def test_a_cut_off_page_list_is_refused() -> None:
    with pytest.raises(FormatError, match="multiple of 24"):
        Shadow.unpack(bytes(25))


@given(runs=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 900)), max_size=60, unique_by=lambda run: run[0]))
def test_a_list_of_ours_is_read_as_the_kernels_is(runs: list[tuple[int, int]]) -> None:
    ours = Shadow(ShadowRun(50 + 20 * place, 10000 + 20 * source, 1 + (place + source) % 20) for place, source in runs)
    head, pages = ours.indirection_list(Range.of_size(start, 1) for start in range(7, 2000, 3))
    assert all(len(page) == PAGE_SIZE and address % PAGE_SIZE == 0 for address, page in pages.items())
    assert head == min(pages) | kimage.IND_INDIRECTION
    assert tuple(sorted(walk(lambda address, _: pages[address], head))) == ours.runs


def test_a_list_longer_than_its_pages_is_refused() -> None:
    ours = Shadow([ShadowRun(0, 1000, 600)])
    assert len(ours.indirection_list([Range(5, 7)])[1]) == 2
    with pytest.raises(HostError, match="602 entries does not fit in 1 pages"):
        ours.indirection_list([Range(5, 6)])


def test_a_part_of_a_shadow_has_no_pairs_that_need_no_swap() -> None:
    whole = Shadow([ShadowRun(10, 100, 10), ShadowRun(20, 20, 10), ShadowRun(30, 50, 10)])
    part = whole.within(RangeSet([Range(5, 12), Range(18, 31)]))
    assert part.runs == ((10, 100, 2), (18, 108, 2), (30, 50, 1))


def test_where_the_kernel_keeps_the_head_is_known_only_when_one_word_has_it() -> None:
    head = 0x1234002
    page = bytearray(PAGE_SIZE)
    memory = BytesMemory(page, base=0x7000)
    assert kimage.kept_head(memory.read, 0x7123, head) == 0
    struct.pack_into("<Q", page, 0x830, head)
    assert kimage.kept_head(BytesMemory(page, base=0x7000).read, 0x7123, head) == 0x7830
    struct.pack_into("<Q", page, 0xFF8, head)
    assert kimage.kept_head(BytesMemory(page, base=0x7000).read, 0x7123, head) == 0
