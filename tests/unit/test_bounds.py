"""Images that are whole, digest and checksums too, and claim what cannot be: refused in one sentence, each time.

They are written by kjump's own writer into the simulated machine's disk with one number changed, and given to the real
boot role.
"""

import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import crash
import pytest
from crash import Machine
from examples import FACTS
from hypothesis import given, settings
from hypothesis import strategies as st

from kjump.errors import FormatError, HostError, ImageError
from kjump.formats import elf, notes
from kjump.formats.e820 import RAM, RESERVED, E820Entry
from kjump.formats.superblock import State, Superblock
from kjump.hibernate import suspend
from kjump.image import headers as image_headers
from kjump.image import save
from kjump.image.bounds import ram_in
from kjump.image.facts import ImageFacts
from kjump.image.restore import check_machine, open_image
from kjump.kexec.kimage import Shadow, ShadowRun
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

APIC = 0xFEE00000
RAM_END = 48 * PAGE_SIZE
NOTE = notes.Note("VMCOREINFO", 0, b"OSRELEASE=test\n").encode()
PADDR, OFFSET, FILESZ, MEMSZ = 24, 8, 32, 40
"""Where a program header of 64 bits has these fields."""

Edit = Callable[[bytearray], None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setattr(image_headers, "_SMALL_GAP_PAGES", 1)  # more than one load
    with crash.machine() as made:
        yield made


def load_field(index: int, field: int, value: int) -> Edit:
    """Change a field of a PT_LOAD."""

    def edit(head: bytearray) -> None:
        struct.pack_into("<Q", head, 64 + 56 * (index + 1) + field, value)

    return edit


def write(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    *,
    edit: Edit = lambda head: None,
    page_list: bytes | None = None,
    facts: Callable[[Any], None] = lambda facts: None,
) -> None:
    """Let B save an image of which one thing is changed before it is written; the machine is off then."""
    build = image_headers.build_headers

    def build_headers(keep: Any, note: Any, true: ImageFacts, shadow: Any, *more: Any) -> image_headers.ImageHeaders:
        says = json.loads(json.dumps(true.to_json()))
        facts(says)
        forged = type("Facts", (), {"to_json": lambda self: says})()
        listed = shadow if page_list is None else type("List", (), {"pack": lambda self: page_list})()
        made = build(keep, note, forged, listed, *more)
        head = bytearray(made.head)
        edit(head)
        return replace(made, head=bytes(head))

    with monkeypatch.context() as patch:
        patch.setattr(image_headers, "build_headers", build_headers)
        machine.cookie = machine.open().arm().cookie
        assert machine._run("B", machine.b) == "off"
    machine.disk.lose_power(cache=False)


def assert_refused(machine: Machine, words: str = "") -> None:
    """The next boot is an ordinary one, says why in a sentence, and has made the image invalid."""
    before = machine.state
    machine.lines.clear()
    assert machine.boot() == "ordinary"
    assert (before, machine.state) == (State.COMPLETE, State.INVALID)
    (line,) = [line for line in machine.lines if "not resumed: " in line]
    assert "unexpected" not in line and words in line, line


def test_an_image_that_claims_nothing_odd_resumes(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    write(machine, monkeypatch)
    assert machine.boot() == "resumed"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (load_field(0, PADDR, APIC), "overlap those before, or do not ascend"),
        (load_field(2, PADDR, APIC), "[0xfee00000-0xfee00fff], which is not RAM"),
        (load_field(2, PADDR, 0xF0000), "not RAM"),
        (load_field(2, PADDR, RAM_END), "not RAM"),
        (load_field(2, PADDR, 1 << 40), "not RAM"),
        (load_field(2, PADDR, 1 << 52), "beyond the end of physical memory"),
        (load_field(2, PADDR, 1 << 63), "beyond the end of physical memory"),
        (load_field(2, PADDR, (1 << 64) - PAGE_SIZE), "beyond the end of physical memory"),
        (load_field(1, PADDR, 5 * PAGE_SIZE), "overlap those before"),
        (load_field(2, PADDR, 22 * PAGE_SIZE), "overlap those before"),
        (load_field(2, PADDR, 0), "overlap those before"),
        (load_field(2, PADDR, RAM_END - PAGE_SIZE + 512), "not whole pages"),
        (load_field(2, FILESZ, 512), "not whole pages"),
        (load_field(2, MEMSZ, 1 << 40), "not whole pages"),
        (load_field(2, FILESZ, 1 << 62), "not whole pages"),
        (load_field(1, OFFSET, 1 << 40), "do not stand in the stream"),
        (load_field(0, OFFSET, 0), "do not stand in the stream"),
        (load_field(2, OFFSET, PAGE_SIZE), "do not stand in the stream"),
        (lambda head: struct.pack_into("<H", head, 56, 3), "of a stream whose pages are in bytes"),
        (lambda head: struct.pack_into("<H", head, 56, 0xFFFE), "program headers"),
        (lambda head: struct.pack_into("<I", head, 64 + 56, elf.PT_NOTE), "2 segments of notes"),
    ],
)
def test_a_load_that_cannot_be(machine: Machine, edit: Edit, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(machine, monkeypatch, edit=edit)
    assert_refused(machine, words)


def runs(*items: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack("<3Q", *item) for item in items)


@pytest.mark.parametrize(
    ("page_list", "words"),
    [
        (runs((1 << 63, 40, 4)), "which cannot be"),
        (runs((16, 1 << 63, 4)), "which cannot be"),
        (runs((16, 40, 1 << 63)), "which cannot be"),
        (runs((16, 40, (1 << 64) - 1)), "which cannot be"),
        (runs((16, 40, 0)), "which cannot be"),
        (runs((16, APIC // PAGE_SIZE, 4)), "not RAM"),
        (runs((16, 46, 4)), "not RAM"),
        (runs((46, 40, 4)), "not RAM"),
        (runs((1 << 39, 40, 4)), "not RAM"),
        (runs((16, 40, 4), (18, 44, 3)), "or has it twice"),
        (runs((20, 40, 1), (16, 44, 3)), "does not ascend"),
        (runs((16, 40, 4), (20, 43, 3)), "has a page twice"),
        (runs((16, 18, 4)), "from and to"),
        (runs(*[(16, 40, 4)] * 1000), "or has it twice"),
        (bytes(25), "multiple of 24"),
    ],
    ids=lambda value: f"{value[:24].hex()}" if isinstance(value, bytes) else None,
)
def test_a_page_list_that_cannot_be(
    machine: Machine, page_list: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(machine, monkeypatch, page_list=page_list)
    assert_refused(machine, words)


def put(value: object, *path: str) -> Callable[[Any], None]:
    """Change a fact."""

    def edit(facts: Any) -> None:
        for name in path[:-1]:
            facts = facts[name]
        facts[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (put([APIC, APIC + 16 * PAGE_SIZE], "system", "window"), "window [0xfee00000-0xfee0ffff] is not RAM"),
        (put([1 << 40, 1 << 41], "system", "window"), "is not RAM"),
        (put([0xF0000, 0x100000], "system", "low"), "low memory [0xf0000-0xfffff] is not RAM"),
        (put([20 * PAGE_SIZE, 25 * PAGE_SIZE], "system", "low"), "overlap"),
        (put(APIC, "system", "gate_address"), "its gate is at 0xfee00000"),
        (put(0x17008, "system", "gate_address"), "its gate is at 0x17008"),
        (put(APIC, "gate", "mailbox"), "mailbox is at 0xfee00000"),
        (put(40 * PAGE_SIZE, "gate", "mailbox"), "mailbox is at 0x28000"),
        (put(APIC, "kept_head"), "list of pages is at 0xfee00000"),
        (put(12, "kept_head"), "list of pages is at 0xc"),
        (put(APIC, "gate", "a_entry"), "a_entry is 0xfee00000"),
        (put((1 << 64) - 1, "gate", "a_stack"), "a_stack is"),
        (put(APIC, "gate", "next_entry"), "next_entry is"),
        (put(APIC, "gate", "cr3_4level"), "cr3_4level is"),
        (put(1, "gate", "cr3_5level"), "cr3_5level is"),
        (put(APIC, "gate", "low_page"), "low_page is"),
        (put(0x5000, "gate", "restore"), "nobody has written"),
    ],
)
def test_a_place_that_cannot_be(
    machine: Machine, facts: Callable[[Any], None], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(machine, monkeypatch, facts=facts)
    assert_refused(machine, words)


def disk_superblock(machine: Machine, **changes: Any) -> Superblock:
    """Write the superblock with `changes`, and its right checksum."""
    changed = machine.disk.superblock().evolve(**changes)
    os.pwrite(machine.disk.fd, changed.pack(), 0)
    machine.disk.flush()
    return changed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"capacity": (1 << 20) + 4096}, "a target of 1052672 bytes, this one has 1048576"),
        ({"capacity": 1 << 62}, "this one has 1048576"),
        ({"capacity": 1 << 62, "image_length": 1 << 60, "seek_table_length": 1 << 59}, "this one has 1048576"),
        ({"header_length": 40 << 20, "stream_length": 40 << 20}, "headers have 41943040 bytes"),
        ({"stream_length": 1 << 62}, "does not describe the frames"),
        ({"stream_length": 8192, "header_length": 4096}, "does not describe the frames"),
        ({"seek_table_length": 8}, "not at the image's end"),
        ({"seek_table_offset": 0}, "not at the image's end"),
    ],
)
def test_a_superblock_that_cannot_be(
    machine: Machine, changes: dict[str, int], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(machine, monkeypatch)
    disk_superblock(machine, **changes)
    assert_refused(machine, words)


def test_a_snapshot_with_such_a_claim_is_left_alone(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.then = "back"
    machine.travel(kind=suspend.Kind.SNAPSHOT)
    disk_superblock(machine, capacity=1 << 62)
    before = os.pread(machine.disk.fd, 4096, 0)
    with pytest.raises(ImageError, match="this one has 1048576"):
        open_image(machine.open(), states=(State.SNAPSHOT,))
    assert machine.boot() == "ordinary"
    assert os.pread(machine.disk.fd, 4096, 0) == before


# --- what is written ---------------------------------------------------------------------------------------------


def test_no_image_is_written_that_would_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_headers, "FACTS_LIMIT", 100)
    with pytest.raises(FormatError, match="at most"):
        image_headers.build_headers(RangeSet(), NOTE, FACTS, Shadow([]))
    with pytest.raises(HostError, match="not in the firmware's memory map"):
        save._require_compared(RangeSet([Range(4096, 1 << 40)]), FACTS)
    save._require_compared(RangeSet([Range(4097, 0x9F000)]), FACTS)


def test_no_load_reaches_over_what_is_not_ram() -> None:
    """Its zeros would be written there: firmware's tables may lie in a gap of a few pages."""
    ram = RangeSet([Range(0, 50), Range(53, 100)])
    keep = RangeSet([Range(0, 10), Range(12, 50), Range(53, 60), Range(70, 80)])
    assert image_headers.merge_small_gaps(keep, ram) == [Range(0, 50), Range(53, 80)]
    assert image_headers.merge_small_gaps(keep) == [Range(0, 80)]


def kjump(kind: int, data: bytes) -> bytes:
    return notes.Note("KJUMP", kind, data).encode()


# --- against sets of frames ----------------------------------------------------------------------------------------

FRAMES = 40
MAILBOX = 3
ranges = st.lists(
    st.tuples(st.integers(0, FRAMES), st.integers(1, 8)).map(lambda item: Range.of_size(*item)), max_size=5
)
ram_ranges = ranges.map(lambda items: RangeSet([*items, Range(0, 8)]))
SYSTEM = replace(
    FACTS.system, window=Range(4 * 4096, 6 * 4096), low=Range(4096, 8192), gate_address=5 * 4096, memory_map=()
)
SOUND = replace(FACTS, system=SYSTEM, gate=replace(FACTS.gate, mailbox=MAILBOX * PAGE_SIZE), kept_head=0)


def contents_of(loads: list[Range], listed: list[ShadowRun], ram: RangeSet) -> image_headers.ImageContents:
    """Return what an image says that claims these loads and pairs; FormatError."""
    memory_map = [E820Entry(Range(r.start * PAGE_SIZE, r.end * PAGE_SIZE), RAM) for r in ram]
    facts = replace(SOUND, system=replace(SYSTEM, memory_map=tuple(memory_map)))
    note = kjump(1, json.dumps(facts.to_json()).encode()) + kjump(2, runs(*listed))
    head, _ = elf.core_headers([elf.CoreLoad(r.start * PAGE_SIZE, 0, r.size * PAGE_SIZE) for r in loads], NOTE + note)
    return image_headers.parse_headers(head)


def is_believed(loads: list[Range], listed: list[ShadowRun], ram: RangeSet) -> bool:
    try:
        contents = contents_of(loads, listed, ram)
        check_machine(
            contents, contents.facts.system.memory_map, contents.facts.system.cpu_model, FACTS.system.cpu_flags
        )
    except (FormatError, ImageError):
        return False
    return True


def frames_of(items: list[Range]) -> list[int]:
    return [frame for item in items for frame in range(item.start, item.end)]


@settings(max_examples=300)
@given(loads=ranges, ram=ram_ranges, ordered=st.booleans())
def test_loads_are_believed_when_each_frame_is_ram_and_comes_once(
    loads: list[Range], ram: RangeSet, ordered: bool
) -> None:
    if ordered:
        loads = sorted([Range(MAILBOX, MAILBOX + 1), *loads])
    frames = frames_of(loads)
    right = frames == sorted(set(frames)) and all(f in ram for f in frames) and MAILBOX in frames
    assert is_believed(loads, [], ram) == right


pairs = st.lists(
    st.tuples(st.integers(8, FRAMES), st.integers(8, FRAMES), st.integers(1, 4)).map(lambda t: ShadowRun(*t)),
    max_size=4,
)


@settings(max_examples=300)
@given(listed=pairs, ram=ram_ranges, ordered=st.booleans())
def test_a_page_list_is_believed_when_each_frame_is_ram_and_has_one_role(
    listed: list[ShadowRun], ram: RangeSet, ordered: bool
) -> None:
    if ordered:
        listed, ram = sorted(listed), ram | RangeSet([Range(8, FRAMES - 2)])
    ones = [(d + i, s + i) for d, s, n in listed for i in range(n)]
    destinations = [d for d, _ in ones]
    elsewhere = [s for d, s in ones if s != d]
    right = (
        destinations == sorted(set(destinations))
        and len({*destinations, *elsewhere}) == len(destinations) + len(elsewhere)
        and all(frame in ram for frame in destinations + elsewhere)
    )
    assert is_believed([Range(MAILBOX, MAILBOX + 1)], listed, ram) == right


def test_what_the_map_calls_ram_and_something_else_is_not_ram() -> None:
    entries = [E820Entry(Range(0, 0x9FC00), RAM), E820Entry(Range(0x5800, 0x5900), RESERVED)]
    assert ram_in(entries) == RangeSet([Range(0, 0x5000), Range(0x6000, 0x9F000)])
