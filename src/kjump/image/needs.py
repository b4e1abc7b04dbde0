"""How much memory the second kernel needs for a save, before there is one."""

from __future__ import annotations

from kjump.memory import PAGE_SIZE

BYTES_PER_RUN = 64
"""For each run of pages in use, at most: measured by tests/unit/test_many_runs.py, at 10.5 million runs too."""


def memory_to_save(memory_end: int, free_blocks: int) -> int:
    """Return the bytes that page selection and the list of what is to be written take.

    `memory_end` is the end of RAM (a bitmap has a bit for each page below it); `free_blocks` how many blocks the
    allocator has free: there are no more runs of pages in use than those, one more and a quarter for what changes until
    the jump.
    """
    return memory_end // PAGE_SIZE // 8 + BYTES_PER_RUN * (free_blocks + free_blocks // 4 + 1)
