"""Windows: where a second kernel is put, and how its range is laid out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import PlanError
from kjump.formats.e820 import IomemResource
from kjump.kexec.placement import FreeMap
from kjump.kexec.window import ALIGNMENT, LOWEST, MIB, find_window, lay_out, low_memory, places
from kjump.ranges import Range, RangeSet


def iomem(*items: tuple[int, int, str]) -> list[IomemResource]:
    return [IomemResource(Range(a, b), name, 0) for a, b, name in items]


@given(
    size=st.integers(1, 64).map(lambda n: n * 2 * MIB),
    kernel=st.integers(16, 700).map(lambda n: n * MIB),
    ram=st.integers(64, 800).map(lambda n: n * MIB),
)
def test_a_found_window_is_in_ram_and_clear_of_the_kernel(size: int, kernel: int, ram: int) -> None:
    kernel_range = Range.of_size(kernel, 20 * MIB)
    resources = iomem((0x1000, 0x9F000, "System RAM"), (MIB, ram, "System RAM"))
    resources.append(IomemResource(kernel_range, "Kernel code", 1))
    try:
        window = find_window(places(resources), size)
    except PlanError:
        free = RangeSet([Range(LOWEST, max(ram, LOWEST))]) - RangeSet([kernel_range.aligned_outside(ALIGNMENT)])
        assert all(r.aligned_inside(ALIGNMENT).size < size for r in free)
        return
    assert window.size == size
    assert window.start % ALIGNMENT == 0
    assert Range(LOWEST, ram).covers(window)
    assert not window.overlaps(kernel_range)


def test_a_window_is_not_in_memory_that_a_driver_may_take_away() -> None:
    resources = iomem((MIB, 64 * MIB, "System RAM"), (512 * MIB, 1024 * MIB, "System RAM (virtio_mem)"))
    assert places(resources).size == 48 * MIB
    assert places([*resources, IomemResource(Range(128 * MIB, 256 * MIB), "System RAM", 1)]).size == 176 * MIB


def test_no_room_names_the_largest_gap() -> None:
    with pytest.raises(PlanError, match="largest gap in RAM clear of the running kernel is 48 MiB"):
        find_window(places(iomem((MIB, 64 * MIB, "System RAM"))), 128 * MIB)


@pytest.mark.parametrize("huge", [True, False])
def test_parts_lie_in_order_and_inside(huge: bool) -> None:
    window = Range.of_size(0x1000000, 128 * MIB)
    layout = lay_out(window, elf_headers_size=5000, memory_end=8 << 30, huge=huge)
    ends = [
        layout.gate, layout.boot_params, layout.command_line, layout.elf_headers,
        layout.tables, layout.tables + layout.tables_size,
    ]  # fmt: skip
    assert ends == sorted(set(ends))
    assert ends[-1] <= window.end
    assert layout.usable.end == layout.reserved.start == layout.gate
    assert all(e % 4096 == 0 for e in ends)


@pytest.mark.parametrize(
    ("window", "words"),
    [
        (Range.of_size(0x1000000 + 4096, 128 * MIB), "multiple of 2 MiB"),
        (Range.of_size(2 * MIB, 128 * MIB), "must not begin below"),
        (Range.of_size(0x1000000, 8 * MIB), "too small"),
    ],
)
def test_bad_windows_are_refused(window: Range, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        lay_out(window, elf_headers_size=0, memory_end=1 << 32, huge=True)


def test_low_memory_leaves_page_zero_and_odd_ends() -> None:
    assert low_memory(RangeSet([Range(0, 0x9FC00), Range(0x100000, 0x8000000)])) == Range(0x1000, 0x9F000)


def test_too_little_low_memory_is_refused() -> None:
    with pytest.raises(PlanError, match="640 KiB"):
        low_memory(RangeSet([Range(0x1000, 0x5000), Range(0x100000, 0x8000000)]))


BLOCK = 512


@pytest.mark.parametrize(
    ("blocks", "elsewhere", "first"),
    [
        ({}, 0, 8),  # all in use: the lowest
        (dict.fromkeys(range(8, 60), BLOCK), 0, 18),  # freshly booted: the lowest are handed out first, so not those
        (dict.fromkeys(range(8, 60), BLOCK), 10 * BLOCK, 8),  # there is enough elsewhere, above 4 GiB
        (dict.fromkeys(range(8, 30), 3), 100 * BLOCK, 30),  # crumbs are handed out in any case
        (dict.fromkeys(range(8, 60), 3) | dict.fromkeys(range(20, 30), 1), 100 * BLOCK, 20),  # the fewest
        (dict.fromkeys(range(8, 30), BLOCK) | dict.fromkeys(range(30, 60), BLOCK - 1), 0, 8),  # crumbs suffice outside
        (dict.fromkeys(range(18, 60), BLOCK), 0, 8),  # in use, although all else is free
        # a free block in each window below: rather one that is handed out than ten that may have been freed last
        (dict.fromkeys([8, 18, 28, 38, *range(40, 60)], BLOCK), 0, 8),
    ],
)
def test_the_best_window_is_the_one_that_is_handed_out_least(
    blocks: dict[int, int], elsewhere: int, first: int
) -> None:
    areas = RangeSet([Range(8 * ALIGNMENT, 60 * ALIGNMENT)])
    found = find_window(areas, 10 * ALIGNMENT, FreeMap(blocks, sum(blocks.values()) + elsewhere))
    assert found == Range.of_size(first * ALIGNMENT, 10 * ALIGNMENT)


@given(blocks=st.dictionaries(st.integers(8, 120), st.integers(0, 512)), more=st.integers(-500, 50000))
def test_a_cost_is_never_more_than_what_is_free_in_the_window(blocks: dict[int, int], more: int) -> None:
    free = FreeMap(blocks, max(0, sum(blocks.values()) + more))
    for first in range(0, 140, 7):
        inside = sum(blocks.get(n, 0) for n in range(first, first + 20))
        assert 0 <= free.cost(Range.of_size(first * ALIGNMENT, 20 * ALIGNMENT)) <= inside
