"""The native classification of pages against a plain one, written from the rules and not from the other."""

from __future__ import annotations

import random
import struct

import pytest
import tinykernel
from hypothesis import given
from hypothesis import strategies as st

from kjump import _core
from kjump.dump import bitmaps
from kjump.dump.classes import PageFields, exclusion_mask
from kjump.dump.kernel import KernelLayout
from kjump.dump.selection import pages_in_use, select_level
from kjump.errors import FormatError
from kjump.formats.vmcoreinfo import VmcoreInfo
from kjump.memory import BytesMemory
from kjump.ranges import Range, RangeSet


def plain_kept(structs: list[bytes], level: int) -> set[int]:
    """The frames that `level` keeps, page by page."""
    left_out: set[int] = set()
    frame = 0
    while frame < len(structs):
        flags, compound_head, _, mapping, _, private, kind = struct.unpack_from("<QQQQQQI", structs[frame])
        kind &= 0xFF000000
        order = structs[frame + 1][0] if flags & tinykernel.HEAD and frame + 1 < len(structs) else 0
        last = frame + (1 << order) - 1
        if order > 20 or frame % (1 << order) or (order and last < len(structs) and not structs[last][8] & 1):
            order = 0
        anon = mapping & 1 and kind != tinykernel.SLAB and not compound_head & 1
        swap = tinykernel.SWAPCACHE | tinykernel.SWAPBACKED
        cache = (flags & tinykernel.LRU or flags & swap == swap) and not anon
        size = 0
        if kind == tinykernel.BUDDY:
            good = private < 11 and frame % (1 << private) == 0
            size = 1 << private if level & 16 and good else 0
        elif cache:
            wanted = level & 4 if flags & tinykernel.PRIVATE else level & 6
            size = 1 << order if wanted else 0
        elif anon or kind == tinykernel.HUGETLB:
            size = 1 << order if level & 8 else 0
        if not size and kind != tinykernel.BUDDY and (flags & tinykernel.POISON or kind == tinykernel.OFFLINE):
            size = 1
        left_out |= set(range(frame, frame + size))
        frame += max(1, size)
    return set(range(len(structs))) - left_out


def native_kept(structs: list[bytes], level: int) -> set[int]:
    keep = bytearray(b"\xff" * (len(structs) // 8))
    fields = PageFields.of(VmcoreInfo(tinykernel.info())).pack()
    counts = _core.classify(b"".join(structs), 0, fields, exclusion_mask(level), keep)
    kept = {f for r in bitmaps.runs(keep, len(structs)) for f in range(r.start, r.end)}
    assert sum(counts) == len(structs) - len(kept)
    return kept


@pytest.mark.parametrize("level", range(32))
def test_native_and_plain_agree(level: int) -> None:
    for seed in range(8):
        structs = tinykernel.page_structs(seed)
        assert native_kept(structs, level) == plain_kept(structs, level)


words = st.sampled_from([0, 1, 2, 3, 5, 0x20, 0x40, 0x60, 0x4020, 0x20400, 0x400000, 1 << 63])
kinds = st.sampled_from([0xFFFFFFFF, 0, *(k << 24 for k in (0xF0, 0xF1, 0xF4, 0xF5)), 0xF0000001])
damaged_structs = st.lists(
    st.builds(tinykernel.page_struct, words, words, words, kinds, words), min_size=16, max_size=64
).map(lambda found: found[: len(found) // 8 * 8])


@given(damaged_structs, st.integers(0, 31))
def test_they_agree_on_any_bytes(structs: list[bytes], level: int) -> None:
    assert native_kept(structs, level) == plain_kept(structs, level)


@pytest.mark.parametrize("model", ["sparse", "static", "flat"])
@pytest.mark.parametrize("level", [0, 31])
def test_selection_through_the_kernels_own_tables(model: str, level: int) -> None:
    memory = BytesMemory(tinykernel.memory(model))
    layout = KernelLayout(memory, VmcoreInfo(tinykernel.info(model)))
    selection = select_level(layout, bitmaps.bitmap(bitmaps.to_frames(memory.ranges)), level)
    kept = {f for r in bitmaps.runs(selection.keep, tinykernel.FRAMES) for f in range(r.start, r.end)}
    assert kept == plain_kept(tinykernel.page_structs(), level)


def test_the_pages_that_the_saver_keeps() -> None:
    memory = BytesMemory(tinykernel.memory())
    layout = KernelLayout(memory, VmcoreInfo(tinykernel.info()))
    in_use = pages_in_use(layout, RangeSet([Range(32, tinykernel.FRAMES)]))
    structs = tinykernel.page_structs()
    free = plain_kept(structs, 0) - plain_kept(structs, 16)
    assert {f for r in in_use for f in range(r.start, r.end)} == {*range(32, tinykernel.FRAMES)} - free


def test_a_flat_map_ends_before_the_firmware() -> None:
    memory = BytesMemory(tinykernel.memory("flat") + bytes(64 << 12))
    layout = KernelLayout(memory, VmcoreInfo(tinykernel.info("flat")))
    assert [(s.first, s.count) for s in layout.page_structs()] == [(0, tinykernel.FRAMES)]


def test_a_missing_entry_is_named() -> None:
    text = tinykernel.info().replace("OFFSET(page.mapping)", "OFFSET(page.gone)")
    with pytest.raises(FormatError, match=r"page\.mapping"):
        PageFields.of(VmcoreInfo(text))


def test_fields_that_contradict_themselves_are_refused() -> None:
    fields = PageFields.of(VmcoreInfo(tinykernel.info()))
    for changed in ({"mapping_at": 60}, {"stride": 0}, {"word": 3}, {"order_at": 4096}):
        packed = PageFields(**{**vars(fields), **changed}).pack()
        with pytest.raises(ValueError):
            _core.classify(bytes(640), 0, packed, 31, bytearray(8))


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40)), max_size=8))
def test_bitmaps_of_ranges(items: list[tuple[int, int]]) -> None:
    wanted = RangeSet(Range.of_size(a, n) for a, n in items)
    bits = bitmaps.bitmap(wanted)
    assert bitmaps.runs(bits, len(bits) * 8) == wanted
    assert bitmaps.count(bits) == wanted.size
    start, end = sorted(random.Random(wanted.size).choices(range(len(bits) * 8 + 1), k=2))
    assert bitmaps.count_between(bits, start, end) == (wanted & RangeSet([Range(start, end)])).size


def test_a_section_without_its_first_structs_does_no_harm() -> None:
    """A section of memory that was added later may have structs for a part of it only."""
    memory = bytearray(tinykernel.memory())
    sections = tinykernel.SECTIONS << 12
    unmapped = struct.pack("<Q", (tinykernel.LINEAR + (5 << 30) - 512 * 64) | 3)
    memory[sections + 16 : sections + 24] = unmapped
    layout = KernelLayout(BytesMemory(bytes(memory)), VmcoreInfo(tinykernel.info()))
    present = bitmaps.bitmap(RangeSet([Range(0, 256)])).ljust(64, b"\0")
    assert bitmaps.count(select_level(layout, present, 31).keep) > 0
