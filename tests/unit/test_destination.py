"""Where A's pages lie until the jump, and that they end where they belong."""

import ctypes
import mmap
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from examples import FACTS
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import FormatError, HostError, ImageError
from kjump.formats.superblock import Details, MemoryUse, Saved, State, Superblock
from kjump.gates import Gate
from kjump.host import locked_memory
from kjump.image import headers as image_headers
from kjump.image import reserved_memory
from kjump.image.destination import Aside, InPlace, lodge
from kjump.kexec import mailbox
from kjump.kexec.kimage import IND_INDIRECTION, Shadow, ShadowRun, walk
from kjump.kexec.linux import Surroundings
from kjump.kexec.window import lay_out
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

MIB = 1 << 20
HUGE = 2 * MIB
WINDOW = Range.of_size(32 * MIB, 64 * MIB)
LOW = Range(0x1000, 0x9F000)
AROUND = Surroundings((), RangeSet([Range(0, 512 * MIB)]), LOW, b"", 0, True, Gate())
LAYOUT = lay_out(WINDOW, elf_headers_size=0, memory_end=AROUND.memory_end, huge=True)

frames = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 12)), max_size=20).map(
    lambda items: RangeSet(Range.of_size(start, size) for start, size in items)
)


@given(homes=frames, blocks=st.permutations(range(60)), unusable=frames)
def test_every_page_comes_home_in_whatever_order_they_are_moved(
    homes: RangeSet, blocks: list[int], unusable: RangeSet
) -> None:
    size = 4
    count = -(-(homes.size + unusable.size) // size) + 1
    pages = [(block * size, index * size) for index, block in enumerate(blocks[:count])]
    try:
        lodgings = lodge(homes, pages, unusable, size)
    except HostError:
        ours = RangeSet(Range.of_size(address, size) for address, _ in pages) - unusable
        assert ours.size < homes.size
        return
    assert RangeSet(Range.of_size(p.home, p.length) for p in lodgings) == homes
    assert sum(p.length for p in lodgings) == homes.size
    assert not RangeSet(Range.of_size(p.lodge, p.length) for p in lodgings) & unusable
    memory: dict[int, int] = {}
    file = {}
    for piece in lodgings:
        for i in range(piece.length):
            assert piece.lodge + i not in memory, "a page of ours is taken once"
            memory[piece.lodge + i] = piece.home + i
            file[piece.offset + i] = piece.lodge + i
    where = {offset + i: address + i for address, offset in pages for i in range(size)}
    assert all(where[offset] == address for offset, address in file.items())
    for piece in reversed(lodgings):
        for i in range(piece.length):
            memory[piece.home + i] = memory[piece.lodge + i]
    assert all(memory[frame] == frame for r in homes for frame in range(r.start, r.end))


def contents_of(wanted: RangeSet, runs: tuple[ShadowRun, ...] = (), kept_head: int = 0) -> image_headers.ImageContents:
    """Return what the headers of an image say that has `wanted` (physical ranges), and pairs of frames `runs`."""
    loads = tuple(Range(r.start // PAGE_SIZE, r.end // PAGE_SIZE) for r in wanted)
    offsets = tuple(sum(r.size for r in loads[:i]) * PAGE_SIZE for i in range(len(loads)))
    return image_headers.ImageContents(
        image_headers.ImageHeaders(b"", loads, offsets), replace(FACTS, kept_head=kept_head), Shadow(runs)
    )


class FakeFile:
    """Pages at addresses of our choice."""

    first = 128 * MIB

    def __init__(self, _: str, count: int) -> None:
        self.fd = -1
        self.count = count
        self.memory = mmap.mmap(-1, count * HUGE)
        self.addresses = [self.first + i * HUGE for i in range(count)]
        self.released = False

    def release(self) -> None:
        self.memory.close()
        self.released = True


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserved_memory, "HugeFile", FakeFile)
    monkeypatch.setattr(reserved_memory.procfs, "meminfo", lambda: {"MemAvailable": 200 * MIB})


@pytest.mark.usefixtures("faked")
def test_what_lies_in_place_is_not_moved_and_the_rest_is() -> None:
    wanted = RangeSet([Range(120 * MIB, 132 * MIB), Range(300 * MIB, 301 * MIB)])
    with Aside(contents_of(wanted), LAYOUT, AROUND) as aside:
        assert aside.moved_bytes == 9 * MIB
        spans = aside.spans
        assert sum(length for _, _, length in spans) == 13 * MIB
        assert [stream for stream, _, _ in spans] == sorted(stream for stream, _, _ in spans)
        assert (8 * MIB, 0, 2 * MIB) in spans, "what belongs to our first page lies there"
        plan = aside.way_back(Gate())
    listed, reserved = plan.segments
    assert plan.entry == LAYOUT.gate + 0x10
    assert (listed.address, reserved.address) == (WINDOW.start, LAYOUT.gate)
    assert Gate.unpack(reserved.data[:0x2000]).restore == WINDOW.start
    runs = list(struct.iter_unpack("<3Q", listed.data))
    assert runs[-1] == (0, 0, 0)
    assert sum(pages for _, _, pages in runs) * PAGE_SIZE == 9 * MIB
    assert all(Range(120 * MIB, 128 * MIB).covers(Range.of_size(to, n * PAGE_SIZE)) or to == 300 * MIB
               for _, to, n in runs[:-1])  # fmt: skip


@pytest.mark.usefixtures("faked")
def test_pages_where_the_kernel_puts_the_gate_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeFile, "first", WINDOW.start)
    with Aside(contents_of(RangeSet([Range(200 * MIB, 264 * MIB)])), LAYOUT, AROUND) as aside:
        plan = aside.way_back(Gate())
    taken = RangeSet(Range.of_size(a, n * PAGE_SIZE) for a, _, n in struct.iter_unpack("<3Q", plan.segments[0].data))
    assert not taken & plan.destinations


@pytest.mark.usefixtures("faked")
def test_too_little_memory_is_said_and_nothing_is_taken() -> None:
    with pytest.raises(HostError, match=r"200 MiB are available, 2\d\d MiB needed"):
        Aside(contents_of(RangeSet([Range(120 * MIB, 300 * MIB)])), LAYOUT, AROUND)


@pytest.mark.usefixtures("faked")
@pytest.mark.parametrize("where", [WINDOW.start, WINDOW.end - PAGE_SIZE, LOW.start])
def test_an_image_with_something_in_the_window_is_refused(where: int) -> None:
    with pytest.raises(ImageError, match="where the second kernel was"):
        Aside(contents_of(RangeSet([Range.of_size(where, PAGE_SIZE)])), LAYOUT, AROUND)


RUNS = (
    ShadowRun(LOW.start // PAGE_SIZE, 70000, 100),
    ShadowRun(WINDOW.start // PAGE_SIZE, 71000, 300),
    ShadowRun(WINDOW.start // PAGE_SIZE + 300, WINDOW.start // PAGE_SIZE + 300, 1000),
    ShadowRun(WINDOW.start // PAGE_SIZE + 1300, 72000, WINDOW.size // PAGE_SIZE - 1300),
)
"""Pairs of a load into the window: the sources lie above 256 MiB."""
KEPT_HEAD = 200 * MIB + 0x830


@pytest.mark.usefixtures("faked")
def test_a_kernel_that_keeps_its_list_where_we_know_is_left_only_the_gates_pages_to_swap() -> None:
    whole = Shadow(RUNS)
    window, low = Range(WINDOW.start + 8 * MIB, WINDOW.start + 12 * MIB), Range(0x3000, 0x8000)
    wanted = RangeSet([low, window, Range(200 * MIB, 202 * MIB)])
    gate = Gate(mailbox=201 * MIB, cookie=bytes(range(16)))
    head = 73 * PAGE_SIZE | IND_INDIRECTION
    with Aside(contents_of(wanted, RUNS, KEPT_HEAD), LAYOUT, AROUND) as aside:
        homes = RangeSet(Range.of_size(piece.home, piece.length) for piece in aside._lodgings)
        assert all(homes.covers(r) for r in (window, Range(200 * MIB, 202 * MIB))), "these are at home at once"
        assert not homes & RangeSet([LOW, Range.of_size(WINDOW.start, HUGE), LAYOUT.reserved])
        memory = aside._file.memory
        memory[aside._bytes_at(gate.mailbox, PAGE_SIZE)] = mailbox.encode(gate.cookie, 0, head, {})
        with pytest.raises(ImageError, match="list of pages is not where"):
            aside.way_back(gate)
        memory[aside._bytes_at(KEPT_HEAD, 8)] = head.to_bytes(8, "little")
        aside.way_back(gate)
        new = int.from_bytes(memory[aside._bytes_at(KEPT_HEAD, 8)], "little")
        left = Shadow(walk(lambda address, size: bytes(memory[aside._bytes_at(address, size)]), new))
        lists = RangeSet(Range.of_size(at // PAGE_SIZE, 1) for at in aside._swap.list_pages)  # type: ignore[union-attr]
    lent = RangeSet(
        Range(r.start // PAGE_SIZE, r.end // PAGE_SIZE)
        for r in (LOW, Range.of_size(WINDOW.start, HUGE), LAYOUT.reserved)
    )
    assert left.destinations == lent & (whole.destinations - whole.in_place)
    assert all(whole.place(Range(d, d + n)) == [(d, s, n)] for d, s, n in left.runs)
    assert (whole.sources | whole.in_place).covers(next(iter(lists)))
    assert not lists & left.sources, "the list is not swapped away while it is read"


@pytest.mark.usefixtures("faked")
def test_a_list_has_room_even_when_the_whole_window_was_free() -> None:
    runs = (ShadowRun(WINDOW.start // PAGE_SIZE, WINDOW.start // PAGE_SIZE, WINDOW.size // PAGE_SIZE),)
    with Aside(contents_of(RangeSet([Range(200 * MIB, 202 * MIB)]), runs, KEPT_HEAD), LAYOUT, AROUND) as aside:
        assert aside._swap is not None
        (page,) = aside._swap.list_pages
        assert page == WINDOW.start + HUGE


@pytest.mark.usefixtures("faked")
def test_the_mailbox_lies_aside_too() -> None:
    cookie = bytes(range(16))
    gate = Gate(mailbox=300 * MIB, cookie=cookie)
    with Aside(contents_of(RangeSet([Range(299 * MIB, 301 * MIB)])), LAYOUT, AROUND) as aside:
        with pytest.raises(FormatError, match="no mailbox"):
            aside.mailbox(gate)
        offset = aside._bytes_at(gate.mailbox, PAGE_SIZE).start
        memory = aside._file.memory
        memory[offset : offset + PAGE_SIZE] = mailbox.encode(cookie, 0, 0, {})
        aside.mailbox(gate).report(mailbox.Outcome.RESUMED, {"a": 1})
        found = mailbox.decode(memory[offset : offset + PAGE_SIZE])
        assert (found.outcome, found.report) == (mailbox.Outcome.RESUMED, {"a": 1})
    assert aside._file.released  # type: ignore[attr-defined]


@pytest.mark.usefixtures("faked")
@pytest.mark.parametrize("address", [298 * MIB, 301 * MIB, 0xFEE00000, 0])
def test_nothing_is_looked_for_where_the_image_has_no_page(address: int) -> None:
    with (
        Aside(contents_of(RangeSet([Range(299 * MIB, 301 * MIB)])), LAYOUT, AROUND) as aside,
        pytest.raises(ImageError, match=f"no page at {address:#x}"),
    ):
        aside.mailbox(Gate(mailbox=address))


@pytest.mark.usefixtures("faked")
def test_a_list_of_pages_has_no_more_room_than_the_window() -> None:
    window = Range.of_size(32 * MIB, 18 * MIB)
    layout = lay_out(window, elf_headers_size=0, memory_end=512 * MIB, huge=True)
    loads = tuple(Range(0x10000 + 2 * i, 0x10001 + 2 * i) for i in range(90_000))
    headers = image_headers.ImageHeaders(b"", loads, tuple(i * PAGE_SIZE for i in range(len(loads))))
    with pytest.raises(HostError, match="scattered too far for the window"):
        Aside(image_headers.ImageContents(headers, FACTS, Shadow(())), layout, AROUND)


@pytest.mark.usefixtures("faked")
def test_pages_taken_ahead_are_used_or_given_back_when_they_are_too_few() -> None:
    wanted = RangeSet([Range(200 * MIB, 264 * MIB)])
    many, few = FakeFile("", 40), FakeFile("", 4)
    with Aside(contents_of(wanted), LAYOUT, AROUND, many) as aside:  # type: ignore[arg-type]
        held: object = aside._file
        assert held is many
        assert not many.released
    assert many.released
    with Aside(contents_of(wanted), LAYOUT, AROUND, few) as aside:
        assert few.released
        assert aside._file.count >= 32


def saved(kept_bytes: int) -> Details:
    return Details(saved=Saved(kept_bytes, 1, 0.0, 0.0, MemoryUse(1, 1), 3))


@pytest.mark.usefixtures("faked")
@pytest.mark.parametrize(
    ("state", "details", "count"),
    [
        (State.COMPLETE, saved(64 * MIB), 44),
        (State.COMPLETE, saved(400 * MIB), None),
        (State.COMPLETE, Details(), None),
        (State.ATTEMPTED, saved(64 * MIB), None),
        (State.ARMED, Details(), None),
    ],
)
def test_room_is_taken_ahead_only_for_an_image_that_fits(
    monkeypatch: pytest.MonkeyPatch, state: State, details: Details, count: int | None
) -> None:
    superblock = Superblock(state=state, details=details)
    target = MagicMock()
    target.__enter__.return_value.read_superblock.return_value = superblock
    monkeypatch.setattr(reserved_memory, "open_at", lambda *_, **__: target)
    taken = reserved_memory.take_ahead("/dev/vdb", 0)
    assert (taken and taken.count) == count


def test_no_room_is_taken_when_the_device_is_not_there(tmp_path: Path) -> None:
    assert reserved_memory.take_ahead(str(tmp_path / "none"), 0) is None
    assert reserved_memory.take_ahead(str(tmp_path / "none"), 4096) is None


def test_a_restorer_does_not_overwrite_itself(tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    memory.write_bytes(bytes(PAGE_SIZE))
    contents = contents_of(RangeSet([Range.of_size(0x1F000, 2 * PAGE_SIZE)]))
    with pytest.raises(ImageError, match="overwrite the restoring kernel at"):
        InPlace(contents, RangeSet([Range(0x10000, 0x20000)]), 0, str(memory))


def test_a_kernel_without_huge_pages_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locked_memory, "_POOL", tmp_path / "nr_hugepages")
    with pytest.raises(HostError, match="the kernel has no huge pages"):
        locked_memory.HugeFile("test", 1)


def test_a_pool_that_does_not_give_what_it_says_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = tmp_path / "nr_hugepages"
    pool.write_text("3\n")
    monkeypatch.setattr(locked_memory, "_POOL", pool)
    with pytest.raises(HostError, match="1048576 huge pages of 2 MiB cannot be used"):
        locked_memory.HugeFile("test", 1 << 20)
    assert int(pool.read_text()) == 3


@pytest.fixture
def populated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ordinary memory for huge pages; the addresses that the kernel was asked to populate."""
    pool, asked = tmp_path / "nr_hugepages", list[int]()
    pool.write_text("0\n")
    monkeypatch.setattr(locked_memory, "_POOL", pool)
    monkeypatch.setattr(locked_memory.os, "MFD_HUGETLB", 0)
    monkeypatch.setattr(locked_memory, "_MFD_HUGE_2MB", 0)
    monkeypatch.setattr(locked_memory, "physical_addresses", lambda memory, size: list(range(len(memory) // size)))

    def madvise(address: ctypes.c_void_p, _: ctypes.c_size_t, advice: int) -> int:
        assert advice == 23, "MADV_POPULATE_WRITE"
        asked.append(address.value or 0)
        return -(len(asked) % 2)  # a kernel that does not know it is helped by a write

    monkeypatch.setattr(locked_memory, "libc", lambda: SimpleNamespace(madvise=madvise))
    return asked


def test_every_huge_page_is_populated_once_before_its_address_is_told(populated: list[int]) -> None:
    file = locked_memory.HugeFile("test", 7)
    base = locked_memory._linear(file.memory)
    assert file.addresses == list(range(7))
    assert sorted(populated) == [base + i * HUGE for i in range(7)]
    file.release()
    file.release()
    assert locked_memory._POOL.read_text() == "0"


def test_a_file_that_nobody_asks_is_given_back_all_the_same(populated: list[int]) -> None:
    file = locked_memory.HugeFile("test", 300)
    file.release()
    assert len(populated) <= 300
    assert locked_memory._POOL.read_text() == "0"
