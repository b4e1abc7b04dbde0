"""Where a restorer puts A's pages: where they belong, or aside until the jump.

C is confined to B's old window, so it can put every page in its place. A boot kernel lies where A's pages belong: it
reads them into huge pages of its own, and the gate puts them in place when no kernel runs any more. A page of ours
that lies where a page of A belongs takes just that one: nothing is to be done for it in the end, and what is moved
then can never overwrite what has yet to be moved.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kjump.errors import HostError, ImageError
from kjump.gates import Gate, pack_page_list
from kjump.hibernate.image import Span, homes
from kjump.hibernate.room import take
from kjump.kexec import mailbox
from kjump.kexec.linux import Surroundings, restore_plan, way_back_plan
from kjump.kexec.pinned import HUGE_PAGE, HugeFile
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

    def place(self, items: Sequence[Span]) -> Sequence[Span]:
        """Return `items`, whose addresses are physical, with addresses that are offsets in `fd`."""
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

    def __init__(self, own: RangeSet, gate_at: int, memory: str = PHYSICAL_MEMORY) -> None:
        """`own` is the running kernel's RAM (physical): no page may land there. The gate lies at physical `gate_at`."""
        self._own = own
        self._gate_at = gate_at
        self.fd = os.open(memory, os.O_RDWR | os.O_CLOEXEC)

    def place(self, items: Sequence[Span]) -> Sequence[Span]:
        """Return `items` as they are; ImageError when one lies in this kernel's own memory."""
        clash = homes(items) & self._own
        if clash:
            raise ImageError(f"the image would overwrite the restoring kernel at {next(iter(clash))}")
        return items

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


class Aside:
    """Pages of the running kernel, which the gate puts where they belong."""

    def __init__(
        self, wanted: RangeSet, layout: WindowLayout, around: Surroundings, ahead: HugeFile | None = None
    ) -> None:
        """Take memory for `wanted`, all that belongs to A (physical ranges of whole pages).

        `layout` is that of B's window, to which nothing of A belongs: gate and page list go there. Pages taken `ahead`
        (see `hibernate.room`) are used, or given back when they are too few. HostError when there is not memory
        enough, or not in huge pages.
        """
        self._layout = layout
        self._around = around
        clash = wanted & RangeSet([layout.window, around.low])
        if clash:
            raise ImageError(f"the image has something at {next(iter(clash))}, where the second kernel was")
        # What the kernel puts there when it jumps must not be in use for anything else.
        list_room = Range.of_size(layout.window.start, HUGE_PAGE * (1 + len(wanted) // 10000))
        unusable = RangeSet(r.aligned_outside(HUGE_PAGE) for r in (list_room, layout.reserved))
        count = -(-(wanted.size + unusable.size) // HUGE_PAGE)
        self._list_room = list_room
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

    def place(self, items: Sequence[Span]) -> list[Span]:
        """Return `items`, cut to pieces, with offsets in our file for addresses."""
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
        ((_, offset, _),) = self.place([(0, gate.mailbox, PAGE_SIZE)])
        return mailbox.PeerMailbox(gate.mailbox, gate.cookie, self._file.memory, offset)

    def way_back(self, gate: Gate) -> Plan:
        """Return the Plan by which the boot kernel leaves for A; HostError when there is too much to move."""
        moved = (piece for piece in self._lodgings if piece.home != piece.lodge)
        page_list = pack_page_list((piece.lodge, piece.home, piece.length // PAGE_SIZE) for piece in moved)
        if len(page_list) > self._list_room.size:
            raise HostError(f"the saved system's pages are scattered too far: {len(page_list)} bytes list them")
        return restore_plan(self._layout, gate, self._around.memory_end, self._around.huge, page_list)

    def __enter__(self) -> Aside:
        """Use as a context manager."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the memory back."""
        self._file.release()
