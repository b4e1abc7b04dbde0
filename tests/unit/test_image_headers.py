"""An image from end to end, on a machine made of bytes: swap, save, restore elsewhere, swap back."""

import random
import subprocess
import tempfile
from pathlib import Path

import pytest
from examples import FACTS
from hypothesis import given, settings
from hypothesis import strategies as st

from kjump import _core
from kjump.errors import FormatError
from kjump.formats import notes, seekable
from kjump.image import headers as image_headers
from kjump.kexec.kimage import Shadow, ShadowRun
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

PAGES = 400
WINDOW = Range(64, 128)
LENT = Range(70, 90)
NOTE = notes.Note("VMCOREINFO", 0, b"OSRELEASE=test\n").encode()


def swap(memory: bytearray, shadow: Shadow) -> None:
    for run in shadow.runs:
        for i in range(run.pages):
            a, b = (run.destination + i) * PAGE_SIZE, (run.source + i) * PAGE_SIZE
            memory[a : a + PAGE_SIZE], memory[b : b + PAGE_SIZE] = memory[b : b + PAGE_SIZE], memory[a : a + PAGE_SIZE]


def page(memory: bytes | bytearray, frame: int) -> bytes:
    return bytes(memory[frame * PAGE_SIZE : (frame + 1) * PAGE_SIZE])


def make_shadow(generator: random.Random) -> Shadow:
    others = [f for f in range(PAGES) if f not in WINDOW]
    generator.shuffle(others)
    return Shadow(
        ShadowRun(frame, frame if generator.random() < 0.1 else others.pop(), 1)
        for frame in range(WINDOW.start, WINDOW.end)
    )


def make_free(generator: random.Random, shadow: Shadow) -> RangeSet:
    taken = shadow.sources | shadow.in_place
    starts = [generator.randrange(PAGES) for _ in range(12)]
    return RangeSet(Range(s, min(PAGES, s + generator.randrange(1, 40))) for s in starts) - taken


def save(memory: bytes, shadow: Shadow, free: RangeSet, *, zero_free: bool, folder: Path) -> bytes:
    """Return the image of A, parked in `memory`."""
    keep = image_headers.frames_to_keep(RangeSet([Range(0, PAGES)]) - free, shadow)
    headers = image_headers.build_headers(keep | free if zero_free else keep, NOTE, FACTS, shadow)
    spans = image_headers.spans(headers, keep, shadow)
    (folder / "memory").write_bytes(memory)
    with (folder / "memory").open("rb") as source, (folder / "image").open("wb+") as out:
        length, _ = _core.compress(
            source_fd=source.fileno(),
            spans=image_headers.pack_spans(spans),
            head=headers.head,
            stream_length=headers.length,
            frame_size=64 << 10,
            level=1,
            threads=2,
            out_fd=out.fileno(),
            out_offset=0,
            direct=False,
            limit=1 << 30,
            trailer=lambda entries: seekable.SeekTable(entries).encode(),
        )
        out.seek(0)
        return out.read(length)


def restore(
    data: bytes, contents: image_headers.ImageContents, to_swap: Shadow, memory: bytearray, folder: Path
) -> None:
    """Put the pages of an image into `memory`, a machine where a restorer sits on what A is `to_swap`."""
    (footer,) = [seekable.table_length(data[-seekable.FOOTER_SIZE :])]
    table = seekable.SeekTable.decode(data[-footer:])
    spans = contents.spans_when_swapped(to_swap)
    (folder / "image").write_bytes(data)
    (folder / "dest").write_bytes(memory)
    with (folder / "image").open("rb") as source, (folder / "dest").open("rb+") as out:
        _core.restore(
            image_fd=source.fileno(),
            image_offset=0,
            entries=table.entries,
            spans=image_headers.pack_spans(spans),
            dest_fd=out.fileno(),
            threads=2,
            direct=False,
        )
    memory[:] = (folder / "dest").read_bytes()


@settings(max_examples=40)
@given(seed=st.integers(0, 1 << 32), zero_free=st.booleans(), lent=st.sampled_from([WINDOW, LENT]))
def test_a_comes_back_page_for_page(seed: int, zero_free: bool, lent: Range) -> None:
    """A swaps all of the window, or has all but a part of it at home already."""
    generator = random.Random(seed)
    shadow = make_shadow(generator)
    free = make_free(generator, shadow)
    memory = bytearray(generator.randbytes(PAGES * PAGE_SIZE))
    before = bytes(memory)
    swap(memory, shadow)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = save(bytes(memory), shadow, free, zero_free=zero_free, folder=folder)
        stream = _core.decompress_bytes(data, 1 << 30)
        contents = image_headers.parse_headers(stream)
        assert contents.facts == FACTS
        assert contents.shadow.runs == shadow.runs
        other = bytearray(generator.randbytes(PAGES * PAGE_SIZE))
        restorer = bytes(other[lent.start * PAGE_SIZE : lent.end * PAGE_SIZE])
        to_swap = contents.shadow if lent == WINDOW else contents.shadow.within(RangeSet([lent]))
        restore(data, contents, to_swap, other, folder)
    assert other[lent.start * PAGE_SIZE : lent.end * PAGE_SIZE] == restorer
    swap(other, to_swap)
    for frame in RangeSet([Range(0, PAGES)]) - free - shadow.sources - shadow.in_place:
        for f in range(frame.start, frame.end):
            assert page(other, f) == page(before, f), f"frame {f}"
    if zero_free:
        for item in free:
            assert not any(other[item.start * PAGE_SIZE : item.end * PAGE_SIZE])
    # And the stream shows A as A is, whoever reads it.
    for load, offset in zip(contents.headers.loads, contents.headers.offsets, strict=True):
        for item in RangeSet([load]) - free - shadow.sources - shadow.in_place:
            at = offset + (item.start - load.start) * PAGE_SIZE
            expected = before[item.start * PAGE_SIZE : item.end * PAGE_SIZE]
            assert stream[at : at + len(expected)] == expected


def test_many_gaps_become_few_loads() -> None:
    frames = RangeSet(Range(i * 40, i * 40 + 1) for i in range(20000))
    loads = image_headers.merge_small_gaps(frames)
    assert len(loads) <= 16384
    assert all(any(load.covers(item) for load in loads) for item in list(frames)[:50])


def test_small_gaps_stay_inside_a_load() -> None:
    frames = RangeSet([Range(0, 10), Range(25, 30), Range(46, 50)])
    assert image_headers.merge_small_gaps(frames) == [Range(0, 30), Range(46, 50)]


def test_a_core_of_somebody_else_is_no_image() -> None:
    from kjump.formats import elf

    head, _ = elf.core_headers([elf.CoreLoad(0, 0, 4096)], NOTE)
    with pytest.raises(FormatError, match="no KJUMP notes"):
        image_headers.parse_headers(head)


def test_the_stream_is_what_zstd_says(tmp_path: Path) -> None:
    generator = random.Random(1)
    shadow = make_shadow(generator)
    memory = generator.randbytes(PAGES * PAGE_SIZE)
    data = save(memory, shadow, RangeSet(), zero_free=False, folder=tmp_path)
    done = subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True)
    assert done.stdout == _core.decompress_bytes(data, 1 << 30)
