"""What an image may claim: its sizes before memory is taken for them, its places before anything is written there.

Checksums find accidents. An image can be whole and say that a page belongs where this machine has an interrupt
controller, or that its headers are a gigabyte of zeros (which take 32 KiB of the medium). Whoever restores has no
second kernel to go back to, so each number that decides about an allocation, an offset or an address is compared
with what is there: the size of the target, and the RAM in the firmware's memory map. All raise FormatError.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import TYPE_CHECKING

from kjump.errors import FormatError
from kjump.formats import e820, seekable
from kjump.formats.superblock import Superblock
from kjump.image.headers import FRAME_SIZE, HEADER_LIMIT, ImageContents, ImageHeaders
from kjump.kexec.kimage import Shadow
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

if TYPE_CHECKING:
    from kjump.target.device import Target

COMPRESSED_LIMIT = FRAME_SIZE + (FRAME_SIZE >> 8)
"""Bytes of a compressed frame. Source: ZSTD_COMPRESSBOUND in zstd.h, for frames of 128 KiB or more."""

_ENTRY = Struct("<3I")
_TABLE_HEAD = 8
_TABLE_PIECE = 1 << 20


def check_lengths(superblock: Superblock, capacity: int, map_length: int) -> None:
    """Compare a superblock with its target of `capacity` bytes, whose extent map takes `map_length` bytes."""
    if superblock.capacity != capacity:
        raise FormatError(
            f"its superblock is that of a target of {superblock.capacity} bytes, this one has {capacity}: it lies on "
            "another device, or the partition has another size now"
        )
    if superblock.map_length != map_length:
        raise FormatError(f"its superblock has an extent map of {superblock.map_length} bytes, not {map_length}")
    table = superblock.seek_table_length
    if superblock.seek_table_offset + table != superblock.image_length or table < _TABLE_HEAD + seekable.FOOTER_SIZE:
        raise FormatError("its seek table is not at the image's end")
    if superblock.image_offset + superblock.image_length > capacity:
        raise FormatError(f"it has {superblock.image_length} bytes, more than there are on the target")
    if superblock.header_length > HEADER_LIMIT:
        raise FormatError(f"its headers have {superblock.header_length} bytes; at most {HEADER_LIMIT} are allowed")


def read_seek_table(target: Target, superblock: Superblock) -> bytes:
    """Return the seek table; TargetError on an I/O error.

    A piece is read at a time and refused when it does not describe frames, so that a table which is not there takes no
    memory however long the superblock says that it is. The frames are those of the stream, up to the table.
    """
    length = superblock.seek_table_length
    end_of_entries = length - seekable.FOOTER_SIZE
    table = bytearray()
    checked, compressed, stream, index = _TABLE_HEAD, 0, 0, 0
    while len(table) < length:
        at = superblock.image_offset + superblock.seek_table_offset + len(table)
        table += target.read_patiently(at, min(_TABLE_PIECE, length - len(table)))
        whole = (min(len(table), end_of_entries) - checked) // _ENTRY.size * _ENTRY.size
        with memoryview(table)[checked : checked + max(whole, 0)] as entries:
            for compressed_size, size, _ in _ENTRY.iter_unpack(entries):
                if not 0 < compressed_size <= COMPRESSED_LIMIT or not 0 < size <= FRAME_SIZE:
                    raise FormatError(
                        f"frame {index} of its seek table has impossible sizes: {compressed_size}, {size}"
                    )
                compressed, stream, index = compressed + compressed_size, stream + size, index + 1
        checked += max(whole, 0)
        if compressed > superblock.seek_table_offset or stream > superblock.stream_length:
            raise FormatError("its seek table does not describe the frames before it")
    if compressed != superblock.seek_table_offset or stream != superblock.stream_length:
        raise FormatError("its seek table does not describe the frames before it")
    return bytes(table)


def check_stream(headers: ImageHeaders, superblock: Superblock) -> None:
    """Compare the headers with the stream: pages begin right behind them, and end where it ends."""
    begin = headers.offsets[0] if headers.offsets else headers.length
    if begin != superblock.header_length or headers.length != superblock.stream_length:
        raise FormatError(
            f"its pages are to stand in bytes {begin} to {headers.length} of a stream whose pages are in bytes "
            f"{superblock.header_length} to {superblock.stream_length}"
        )


def ram_in(memory_map: Iterable[e820.E820Entry]) -> RangeSet:
    """Return the whole pages of RAM (physical addresses) in a firmware's map, less what it says of them otherwise."""
    entries = [*memory_map]
    ram = RangeSet(entry.range for entry in entries if entry.type == e820.RAM)
    others = RangeSet(entry.range for entry in entries if entry.type != e820.RAM)
    return (ram - others).aligned_inside(PAGE_SIZE)


def check_places(contents: ImageContents, memory_map: Iterable[e820.E820Entry]) -> None:
    """Refuse an image of which anything belongs, or is put meanwhile, where `memory_map` has no RAM.

    Its page list must say of no page two things, and what the restorer changes in the saved system must be in it.
    """
    ram = ram_in(memory_map)
    frames = RangeSet.ascending((start // PAGE_SIZE, end // PAGE_SIZE) for start, end in ram.pairs())
    for load in contents.headers.loads:
        _require(frames, load, "it has pages")
    _check_page_list(contents.shadow, frames)
    system = contents.facts.system
    for name, item in (("window", system.window), ("low memory", system.low)):
        if not ram.covers(item):
            raise FormatError(f"the second kernel's {name} {item} is not RAM of this machine")
    if system.window.overlaps(system.low):
        raise FormatError(f"the second kernel's window {system.window} and its low memory {system.low} overlap")
    if system.gate_address % PAGE_SIZE or system.gate_address not in system.window:
        raise FormatError(
            f"its gate is at {system.gate_address:#x}, outside the second kernel's window {system.window}"
        )
    _check_gate(contents, ram)


def _check_page_list(shadow: Shadow, frames: RangeSet) -> None:
    """Refuse a page list with what is not RAM (`frames`), or with a page in two roles."""
    moved = sum(pages for destination, source, pages in shadow.runs if destination != source)
    in_place = sum(pages for destination, source, pages in shadow.runs if destination == source)
    if shadow.destinations.size != moved + in_place or shadow.sources.size != moved:
        raise FormatError("its page list has a page twice")
    both = shadow.destinations & shadow.sources
    if len(both):
        raise FormatError(f"its page list takes the pages {_addresses(next(iter(both)))} from and to")
    for item in (*(shadow.destinations - frames), *(shadow.sources - frames)):
        _require(frames, item, "its page list has pages")


def _check_gate(contents: ImageContents, ram: RangeSet) -> None:
    """Refuse places that are entered, or written to, on the way back, and are not the saved system's."""
    facts = contents.facts
    restored = contents.frames_to_restore
    if facts.gate.mailbox // PAGE_SIZE not in restored:
        raise FormatError(f"the saved system's mailbox is at {facts.gate.mailbox:#x}, where the image has no page")
    if facts.kept_head and (facts.kept_head % 8 or facts.kept_head // PAGE_SIZE not in restored):
        raise FormatError(f"the saved kernel's list of pages is at {facts.kept_head:#x}, where the image has no page")
    for name in ("a_entry", "a_stack", "next_entry"):
        address = getattr(facts.gate, name)
        if address and address not in ram:
            raise FormatError(f"the gate's {name} is {address:#x}, which is not RAM of this machine")
    for name in ("cr3_4level", "cr3_5level"):
        address = getattr(facts.gate, name)
        if address and address not in facts.system.window:
            raise FormatError(f"the gate's {name} is {address:#x}, outside the second kernel's window")
    if facts.gate.low_page and facts.gate.low_page not in facts.system.low:
        raise FormatError(f"the gate's low_page is {facts.gate.low_page:#x}, outside the second kernel's low memory")
    if facts.gate.restore:
        raise FormatError(f"the gate is to move pages by a list at {facts.gate.restore:#x} that nobody has written")


def _require(frames: RangeSet, item: Range, what: str) -> None:
    if not frames.covers(item):
        wrong = next(iter(RangeSet([item]) - frames))
        raise FormatError(f"{what} at {_addresses(wrong)}, which is not RAM of this machine")


def _addresses(frames: Range) -> Range:
    return Range(frames.start * PAGE_SIZE, frames.end * PAGE_SIZE)
