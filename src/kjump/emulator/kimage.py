"""The kernel's `kimage`: builds in the emulated machine's memory what kexec_load makes of a Plan.

For each destination page of the segments there is a source page elsewhere, which holds the loaded contents until the
jump swaps the two. The list that pairs them consists of addresses with flags (see `kexec.kimage`):

```
destination | source source source ... destination | source ... | indirection -> next page of the list ... done
```

A page that is its own destination is used in place. No other source page, and no control or list page, may lie in a
destination range, because a swap would destroy it.
"""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass, field
from itertools import pairwise

from kjump.emulator.ram import Ram
from kjump.kexec.kimage import IND_DESTINATION, IND_DONE, IND_INDIRECTION, IND_SOURCE
from kjump.kexec.plan import ARCH_I386, ARCH_X86_64, ON_CRASH, PRESERVE_CONTEXT, SEGMENT_MAX, Plan, Segment
from kjump.kexec.refusals import refused_load
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

_FLAGS = ON_CRASH | PRESERVE_CONTEXT


class Pages:
    """The emulated kernel's free pages, allocated in a pseudo-random order (`seed`), as on a busy system."""

    def __init__(self, usable: RangeSet, seed: int) -> None:
        """Begin with all whole pages of `usable` free."""
        self._free = [p for r in usable for p in range(r.start, r.end, PAGE_SIZE)]
        random.Random(seed).shuffle(self._free)

    def __len__(self) -> int:
        """Return the number of free pages."""
        return len(self._free)

    def take(self) -> int | None:
        """Allocate a page and return its physical address; None when no page is free."""
        return self._free.pop() if self._free else None

    def take_run(self, count: int, usable: RangeSet) -> int | None:
        """Allocate `count` contiguous pages within `usable` and return their physical address, or None."""
        free = RangeSet(Range.of_size(p, PAGE_SIZE) for p in self._free) & usable
        found = free.highest_fit(count * PAGE_SIZE, PAGE_SIZE)
        if found is None:
            return None
        self._free = [p for p in self._free if p not in found]
        return found.start

    def take_these(self, pages: tuple[int, ...]) -> bool:
        """Allocate exactly these pages; tell whether all of them were free."""
        wanted = set(pages)
        left = [p for p in self._free if p not in wanted]
        if len(left) + len(wanted) != len(self._free):
            return False
        self._free = left
        return True

    def give(self, pages: list[int]) -> None:
        """Free `pages`."""
        self._free.extend(pages)


@dataclass
class Image:
    """A loaded Plan: control page, swap page, head of the list, and all its pages."""

    plan: Plan
    control: list[int] = field(default_factory=list)
    swap: int = 0
    head: int = IND_DONE
    start: int = 0
    pairs: dict[int, int] = field(default_factory=dict)
    list_pages: list[int] = field(default_factory=list)
    unused: list[int] = field(default_factory=list)

    @property
    def pages(self) -> list[int]:
        """All pages of A that belong to the image."""
        return [*self.control, self.swap, *self.pairs.values(), *self.list_pages, *self.unused]


def check(plan: Plan, ram_size: int, arch_flag: int, crash: Range | None) -> None:
    """Raise RefusedError, with Linux's error number, for a Plan that Linux refuses."""
    flags = plan.flags & 0xFFFF
    if plan.flags & ~0xFFFF not in (arch_flag, 0) or flags & ~_FLAGS or flags == _FLAGS:
        raise refused_load(errno.EINVAL, str(plan))
    if len(plan.segments) > SEGMENT_MAX:
        raise refused_load(errno.EINVAL, str(plan))
    for segment in plan.segments:
        if segment.address % PAGE_SIZE or segment.memory_size % PAGE_SIZE:
            raise refused_load(errno.EADDRNOTAVAIL, str(plan))
        if len(segment.data) > segment.memory_size:
            raise refused_load(errno.EINVAL, str(plan))
    ordered = sorted(s.range for s in plan.segments)
    if any(a.overlaps(b) for a, b in pairwise(ordered)):
        raise refused_load(errno.EINVAL, str(plan))
    if flags & ON_CRASH:
        if crash is None or not all(crash.covers(s.range) for s in plan.segments):
            raise refused_load(errno.EADDRNOTAVAIL, str(plan))
    elif plan.memory_size > ram_size // 2:
        raise refused_load(errno.EINVAL, str(plan))
    limit = 1 << 32 if arch_flag == ARCH_I386 else 1 << 46
    if any(s.range.end > limit for s in plan.segments):
        raise refused_load(errno.EADDRNOTAVAIL, str(plan))


class Builder:
    """Builds an Image page by page; a failure frees all its pages."""

    def __init__(self, plan: Plan, ram: Ram, pages: Pages) -> None:
        """Build for `plan` from the free `pages`."""
        self._ram = ram
        self._pages = pages
        self._image = Image(plan, start=plan.entry)
        self._destinations = plan.destinations
        self._word = 8 if plan.flags & ~0xFFFF == ARCH_X86_64 else 4
        self._aside: set[int] = set()
        self._entries: list[int] = []

    def build(self, control_pages: int) -> Image:
        """Return the image; RefusedError (ENOMEM) when memory does not suffice."""
        try:
            self._image.control = [self._outside() for _ in range(control_pages)]
            self._image.swap = self._outside()
            if not self._image.plan.flags & ON_CRASH:
                for segment in self._image.plan.segments:
                    self._load(segment)
                self._write_list()
        except BaseException:
            self._image.unused.extend(self._aside)
            held = [p for p in self._image.pages if p]
            self._pages.give(held)
            raise
        self._image.unused.extend(self._aside)
        if self._image.plan.flags & ON_CRASH:
            self._load_in_place()
        return self._image

    def _take(self) -> int:
        page = self._pages.take()
        if page is None:
            raise refused_load(errno.ENOMEM, str(self._image.plan))
        return page

    def _outside(self) -> int:
        """Return a page outside all destination ranges; pages inside are put aside, for use in place."""
        while True:
            page = self._take()
            if page not in self._destinations:
                return page
            self._aside.add(page)

    def _source(self, destination: int) -> int:
        """Return the source page for `destination`: the destination page itself if it was allocated."""
        if destination in self._aside:
            self._aside.discard(destination)
            return destination
        while True:
            page = self._take()
            if page == destination or page not in self._destinations:
                return page
            self._aside.add(page)

    def _load(self, segment: Segment) -> None:
        if segment.memory_size:
            self._entries.append(segment.address | IND_DESTINATION)
        for offset in range(0, segment.memory_size, PAGE_SIZE):
            page = self._source(segment.address + offset)
            self._image.pairs[segment.address + offset] = page
            self._entries.append(page | IND_SOURCE)
            self._ram.write(page, segment.data[offset : offset + PAGE_SIZE].ljust(PAGE_SIZE, b"\0"))

    def _load_in_place(self) -> None:
        for segment in self._image.plan.segments:
            self._ram.write(segment.address, segment.data.ljust(segment.memory_size, b"\0"))

    def _write_list(self) -> None:
        """Write the entries to list pages; the last entry of a full page is the address of the next page."""
        if not self._entries:
            return
        room = PAGE_SIZE // self._word - 1
        entries = [*self._entries, IND_DONE]
        chunks = [entries[i : i + room] for i in range(0, len(entries), room)]
        self._image.list_pages = [self._outside() for _ in chunks]
        self._image.head = self._image.list_pages[0] | IND_INDIRECTION
        for index, (page, chunk) in enumerate(zip(self._image.list_pages, chunks, strict=True)):
            if index + 1 < len(chunks):
                chunk.append(self._image.list_pages[index + 1] | IND_INDIRECTION)
            data = b"".join(e.to_bytes(self._word, "little") for e in chunk)
            self._ram.write(page, data.ljust(PAGE_SIZE, b"\0"))
