"""Processes a source's pages on all cores, and delivers the results in order and in bounded memory.

At most 2 * threads + 1 chunks are in progress at a time, each of at most CHUNK pages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from kjump import _core, _dump
from kjump.dump.source import Source
from kjump.errors import KjumpError

CHUNK = 512
"""Pages in one chunk (2 MiB)."""

Progress = Callable[[int, int, int], bool | None]
"""Called with (pages done, pages in all, bytes written); returns False to stop."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Stopped(KjumpError):
    """The progress callback asked to stop."""

    exit_status = 130


@dataclass(frozen=True, slots=True)
class Chunk:
    """Page frames [start, end), of which `pages` are set in the bitmap."""

    start: int
    end: int
    pages: int


def chunks(bits: bytes | bytearray, start: int, end: int, pages: int = CHUNK) -> Iterator[Chunk]:
    """Divide the set bits in [start, end) into chunks of `pages` pages; the last may be smaller."""
    while True:
        first, last, found = _dump.advance(bits, start, end, pages)
        if not found:
            return
        yield Chunk(first, last, found)
        start = last


def in_order(work: Callable[[_Item], _Result], items: Iterable[_Item], threads: int) -> Iterator[tuple[_Item, _Result]]:
    """Do `work` on `items` with `threads` threads; yield each item with its result, in order."""
    if threads == 1:
        yield from ((item, work(item)) for item in items)
        return
    pending: deque[tuple[_Item, Future[_Result]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                pending.append((item, pool.submit(work, item)))
                if len(pending) > 2 * threads:
                    done, future = pending.popleft()
                    yield done, future.result()
            while pending:
                done, future = pending.popleft()
                yield done, future.result()
        finally:
            for _, future in pending:
                future.cancel()


def drop_zeros(source: Source, keep: bytearray, threads: int) -> int:
    """Read all pages of `keep`, and clear the bits of those that are zeros; return how many there were."""

    def look(chunk: Chunk) -> bytes:
        return _core.zero_pages(source.read_pages(keep, chunk.start, chunk.end))

    # The list of chunks is made first, because two chunks may share a byte of the bitmap that is changed here.
    found = list(in_order(look, list(chunks(keep, 0, len(keep) * 8)), threads))
    return sum(_dump.drop(keep, chunk.start, chunk.end, zeros) for chunk, zeros in found)
