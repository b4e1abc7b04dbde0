"""The Plan: everything a load needs, decided and checked, as one frozen value.

The kernel (`kexec.syscalls`), the emulator and a dry run accept the same Plan. Limits are those of Linux's kexec_load:
KEXEC_SEGMENT_MAX (include/linux/kexec.h) and sanity_check_segment_list (kernel/kexec_core.c).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from kjump.errors import PlanError
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

SEGMENT_MAX = 16

ON_CRASH = 0x1
PRESERVE_CONTEXT = 0x2
ARCH_I386 = 3 << 16
ARCH_X86_64 = 62 << 16


@dataclass(frozen=True)
class Segment:
    """Memory to load: `data` at physical `address`, followed by zeros up to `memory_size` bytes in all."""

    address: int
    memory_size: int
    data: bytes
    name: str = ""

    @property
    def range(self) -> Range:
        """The physical addresses the segment takes."""
        return Range.of_size(self.address, self.memory_size)


@dataclass(frozen=True)
class Plan:
    """A checked load request: physical `entry` address, segments by ascending address, kexec_load `flags`."""

    entry: int
    segments: tuple[Segment, ...]
    flags: int

    def __str__(self) -> str:
        """Return the whole request on one line, for error messages."""
        request = "; ".join(f"{s.name or 'segment'} {s.range}" for s in self.segments)
        return f"entry {self.entry:#x}, flags {self.flags:#x}, {request}"

    @property
    def destinations(self) -> RangeSet:
        """The physical addresses that all segments take."""
        return RangeSet(s.range for s in self.segments)

    @property
    def preserves_context(self) -> bool:
        """Whether the kernel that jumps can be returned to (KEXEC_PRESERVE_CONTEXT)."""
        return bool(self.flags & PRESERVE_CONTEXT)

    @property
    def memory_size(self) -> int:
        """Bytes of memory that all segments take together."""
        return sum(s.memory_size for s in self.segments)

    @property
    def data_size(self) -> int:
        """Bytes of data that are loaded."""
        return sum(len(s.data) for s in self.segments)


def make_plan(entry: int, segments: Iterable[Segment], flags: int) -> Plan:
    """Sort and check `segments`, and return the Plan; PlanError, with the reason, for what Linux would refuse."""
    ordered = tuple(sorted(segments, key=lambda s: s.address))
    if len(ordered) > SEGMENT_MAX:
        raise PlanError(f"{len(ordered)} segments; Linux takes at most {SEGMENT_MAX}: join neighbouring ones")
    for segment in ordered:
        _check_segment(segment)
    for left, right in pairwise(ordered):
        if left.range.overlaps(right.range):
            raise PlanError(f"segments overlap: {_describe(left)} and {_describe(right)}")
    return Plan(entry, ordered, flags)


def _describe(segment: Segment) -> str:
    return f"{segment.name or 'unnamed'} {segment.range}"


def _check_segment(segment: Segment) -> None:
    where = _describe(segment)
    if segment.address % PAGE_SIZE or segment.memory_size % PAGE_SIZE:
        raise PlanError(f"segment {where} must begin and end at multiples of {PAGE_SIZE} bytes")
    if len(segment.data) > segment.memory_size:
        raise PlanError(f"segment {where} has {len(segment.data)} bytes of data for {segment.memory_size} of memory")
    if segment.memory_size == 0 and segment.address == 0:
        # Such a segment makes kimage_is_destination_range() wrap around and match every page (seen on 6.12, not on
        # 6.1), so that the kernel finds no control page.
        raise PlanError("an empty segment at address 0 makes every page a destination: put it elsewhere")
