"""Where a restorer puts A's pages: where they belong, or aside until the jump.

C is confined to B's old window, so it can put every page in its place. A boot kernel lies where A's pages belong: it
reads them into huge pages of its own, and the gate puts them in place when no kernel runs any more. A page of ours
that lies where a page of A belongs takes just that one: nothing is to be done for it in the end, and what is moved
then can never overwrite what has yet to be moved.

A's kernel swaps the whole window back when it is entered, for C is in it. Nobody is when the gate has put A's pages in
place: these go to the window at once, and A is given a shorter list, of what the gate itself lies on.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kjump.errors import HostError, ImageError
from kjump.gates import Gate, pack_page_list
from kjump.host import root
from kjump.host.locked_memory import HUGE_PAGE, HugeFile
from kjump.image.headers import ImageContents, Span, homes
from kjump.image.reserved_memory import take
from kjump.kexec import mailbox
from kjump.kexec.linux import Surroundings, restore_plan, way_back_plan
from kjump.kexec.plan import Plan
from kjump.kexec.window import WindowLayout
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

PHYSICAL_MEMORY = "/dev/mem"


class Landing(Protocol):
    """A file for A's pages, and the way to A once they are there. Use as a context manager."""

    @property
    def fd(self) -> int:
        """The file that the native core writes to."""
        ...

    @property
    def spans(self) -> Sequence[Span]:
        """Where the pages that are to be written stand in the stream, and in `fd`."""
        ...

    def mailbox(self, gate: Gate) -> mailbox.PeerMailbox:
        """Return A's mailbox, once A's pages are there; FormatError when there is none."""
        ...

    def way_back(self, gate: Gate) -> Plan:
        """Return the Plan by which this kernel leaves for A, through a gate with these fields."""
        ...

    def __enter__(self) -> Landing:
        """Use as a context manager."""
        ...

    def __exit__(self, *_: object) -> None:
        """Let go of the file."""
        ...


class InPlace:
    """Every page where it belongs, by way of /dev/mem (or a file `memory` in its place)."""

    def __init__(self, contents: ImageContents, own: RangeSet, gate_at: int, memory: str = PHYSICAL_MEMORY) -> None:
        """`own` is the running kernel's RAM (physical): no page of `contents` may land there, else ImageError.

        The gate lies at physical `gate_at`.
        """
        self.spans: Sequence[Span] = contents.spans_to_restore
        clash = homes(self.spans) & own
        if clash:
            raise ImageError(f"the image would overwrite the restoring kernel at {next(iter(clash))}")
        self._gate_at = gate_at
        self.fd = os.open(root.at(memory), os.O_RDWR | os.O_CLOEXEC)

    def mailbox(self, gate: Gate) -> mailbox.PeerMailbox:
        """Return A's mailbox; FormatError when there is none."""
        return mailbox.PeerMailbox.at_physical(gate.mailbox, gate.cookie)

    def way_back(self, gate: Gate) -> Plan:
        """Return the Plan by which C leaves for A."""
        return way_back_plan(self._gate_at, gate)

    def __enter__(self) -> InPlace:
        """Use as a context manager."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Lodging:
    """`length` bytes of A that belong at physical `home` and lie at physical `lodge`, byte `offset` of the file."""

    home: int
    lodge: int
    offset: int
    length: int


def lodge(
    wanted: RangeSet, pages: Iterable[tuple[int, int]], unusable: RangeSet, size: int = HUGE_PAGE
) -> list[Lodging]:
    """Return where all of `wanted` lies meanwhile, in ascending order of homes.

    `pages` are (physical address, offset in the file) of pages of `size` bytes; of these nothing in `unusable` is
    taken. What of `wanted` is in a page of ours lies there already; the rest fills what is left. All ranges are whole
    small pages. HostError when the pages do not suffice.
    """
    by_address = sorted(pages)
    ours = RangeSet(Range.of_size(address, size) for address, _ in by_address) - unusable
    found = [*_pieces(wanted & ours, wanted & ours, by_address, size)]
    strangers = wanted - ours
    room = ours - wanted
    if strangers.size > room.size:
        raise HostError(f"{room.size} bytes of memory are not enough for {strangers.size} bytes of the saved system")
    found += _pieces(strangers, room, by_address, size)
    return sorted(found, key=lambda piece: piece.home)


def _pieces(
    wanted: Iterable[Range], room: Iterable[Range], by_address: Sequence[tuple[int, int]], size: int
) -> Iterable[Lodging]:
    """Go through pairs of equally long parts of `wanted` and `room`, none across the border of two pages of ours."""
    addresses = [address for address, _ in by_address]
    rooms = iter(room)
    at = end = 0
    for home in wanted:
        start = home.start
        while start < home.end:
            if at == end:
                free = next(rooms)
                at, end = free.start, free.end
            address, offset = by_address[bisect_right(addresses, at) - 1]
            length = min(home.end - start, end - at, address + size - at)
            yield Lodging(start, at, offset + at - address, length)
            start, at = start + length, at + length


class _ShortSwap:
    """What A's kernel has left to swap on the way back: what was lent to gate and page list.

    `shadow` has these pairs, `head` and `list_pages` (physical address: contents) say so to A's kernel, at `kept_head`.
    The list lies on pages which A's kernel has for the second kernel and will free unread. So does the list that it
    goes by then, which stays as it is.
    """

    def __init__(self, contents: ImageContents, lent: RangeSet) -> None:
        frames = RangeSet(Range(r.start // PAGE_SIZE, r.end // PAGE_SIZE) for r in lent)
        whole = contents.shadow
        self.kept_head = contents.facts.kept_head
        self.shadow = whole.within(frames)
        unread = (
            Range.of_size(run.source + rest.start - run.destination, rest.size)
            for run in whole.runs
            for rest in RangeSet([Range.of_size(run.destination, run.pages)]) - frames
        )
        self.head, self.list_pages = self.shadow.indirection_list(unread)

    @property
    def pages(self) -> RangeSet:
        """Where the list lies (physical ranges of whole pages)."""
        return RangeSet(Range.of_size(address, PAGE_SIZE) for address in self.list_pages)


class Aside:
    """Pages of the running kernel, which the gate puts where they belong."""

    def __init__(
        self, contents: ImageContents, layout: WindowLayout, around: Surroundings, ahead: HugeFile | None = None
    ) -> None:
        """Take memory for all that `contents` has of A.

        `layout` is that of B's window: gate and page list go there. Pages taken `ahead` (see `image.reserved_memory`)
        are used, or given back when they are too few. HostError when there is not memory enough, or not in huge pages;
        ImageError when something of A belongs where the gate is to be.
        """
        self._layout = layout
        self._around = around
        # What the kernel puts there when it jumps must not be in use for anything else.
        list_room = Range.of_size(layout.window.start, HUGE_PAGE * (1 + len(contents.frames_to_restore) // 10000))
        if list_room.end > layout.gate:
            raise HostError(f"the saved system's pages are scattered too far for the window {layout.window}")
        self._list_room = list_room
        self._swap: _ShortSwap | None = None
        if contents.facts.kept_head:
            lent = RangeSet([list_room, layout.reserved, around.low])
            self._swap = _ShortSwap(contents, lent)
            self._items = contents.spans_when_swapped(self._swap.shadow)
        else:
            lent = RangeSet([layout.window, around.low])
            self._items = contents.spans_to_restore
        wanted = homes(self._items)
        clash = wanted & lent
        if clash:
            raise ImageError(f"the image has something at {next(iter(clash))}, where the second kernel was")
        if self._swap:
            wanted |= self._swap.pages
        unusable = RangeSet(r.aligned_outside(HUGE_PAGE) for r in (list_room, layout.reserved))
        count = -(-(wanted.size + unusable.size) // HUGE_PAGE)
        if ahead is not None and ahead.count < count:
            ahead.release()
            ahead = None
        self._file = ahead or take(count)
        try:
            pages = [(address, i * HUGE_PAGE) for i, address in enumerate(self._file.addresses)]
            self._lodgings = lodge(wanted, pages, unusable)
        except BaseException:
            self._file.release()
            raise
        self._homes = [piece.home for piece in self._lodgings]

    @property
    def fd(self) -> int:
        """The file of our pages."""
        return self._file.fd

    @property
    def moved_bytes(self) -> int:
        """How much the gate has to move."""
        return sum(piece.length for piece in self._lodgings if piece.home != piece.lodge)

    @property
    def spans(self) -> list[Span]:
        """Where A's pages stand in the stream, cut to pieces, with offsets in our file for addresses."""
        return self._placed(self._items)

    def _placed(self, items: Iterable[Span]) -> list[Span]:
        placed = []
        for stream, address, size in items:
            end = address + size
            index = bisect_right(self._homes, address) - 1
            while address < end:
                piece = self._lodgings[index]
                skipped = address - piece.home
                length = min(end - address, piece.length - skipped)
                placed.append((stream, piece.offset + skipped, length))
                stream, address, index = stream + length, address + length, index + 1
        return placed

    def mailbox(self, gate: Gate) -> mailbox.PeerMailbox:
        """Return A's mailbox, which lies aside too; FormatError when there is none."""
        return mailbox.PeerMailbox(gate.mailbox, gate.cookie, self._file.memory, self._bytes_at(gate.mailbox, 1).start)

    def _bytes_at(self, address: int, size: int) -> slice:
        """Return where `size` bytes of A at physical `address`, within a page, are in our file; ImageError when not."""
        index = bisect_right(self._homes, address) - 1
        if index < 0 or address + size > self._homes[index] + self._lodgings[index].length:
            raise ImageError(f"the image has no page at {address:#x}, where the saved system is to find something")
        ((_, offset, _),) = self._placed([(0, address, size)])
        return slice(offset, offset + size)

    def way_back(self, gate: Gate) -> Plan:
        """Return the Plan by which the boot kernel leaves for A, whose pages are there.

        HostError when there is too much to move, ImageError when A's kernel keeps no list where it should.
        """
        if self._swap:
            self._put(self._swap, self.mailbox(gate).head)
        moved = (piece for piece in self._lodgings if piece.home != piece.lodge)
        page_list = pack_page_list((piece.lodge, piece.home, piece.length // PAGE_SIZE) for piece in moved)
        if len(page_list) > self._list_room.size:
            raise HostError(f"the saved system's pages are scattered too far: {len(page_list)} bytes list them")
        return restore_plan(self._layout, gate, self._around.memory_end, self._around.huge, page_list)

    def _put(self, swap: _ShortSwap, head: int) -> None:
        """Give A the short list in place of the one that begins with `head`."""
        memory, kept = self._file.memory, self._bytes_at(swap.kept_head, 8)
        if int.from_bytes(memory[kept], "little") != head:
            raise ImageError(
                f"the saved kernel's list of pages is not where the image says it is ({swap.kept_head:#x})"
            )
        memory[kept] = swap.head.to_bytes(8, "little")
        for address, content in swap.list_pages.items():
            memory[self._bytes_at(address, PAGE_SIZE)] = content

    def __enter__(self) -> Aside:
        """Use as a context manager."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the memory back."""
        self._file.release()
