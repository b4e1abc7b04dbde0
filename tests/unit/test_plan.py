"""The Plan: what Linux would refuse is refused here first, in words."""

import pytest

from kjump.errors import PlanError
from kjump.kexec.plan import ARCH_X86_64, PRESERVE_CONTEXT, Segment, make_plan


def test_segments_are_sorted_and_summed() -> None:
    plan = make_plan(
        0x2000,
        [Segment(0x4000, 0x2000, b"later"), Segment(0x1000, 0x1000, b"x")],
        ARCH_X86_64 | PRESERVE_CONTEXT,
    )
    assert [s.address for s in plan.segments] == [0x1000, 0x4000]
    assert (plan.memory_size, plan.data_size, plan.preserves_context) == (0x3000, 6, True)


@pytest.mark.parametrize(
    ("segments", "words"),
    [
        ([Segment(0x1000 * i, 0x1000, b"") for i in range(1, 18)], "17 segments"),
        ([Segment(0x1000, 0x3000, b"", "left"), Segment(0x3000, 0x1000, b"", "right")], "overlap: left"),
        ([Segment(0x1001, 0x1000, b"")], "multiples of 4096"),
        ([Segment(0x1000, 0x1001, b"")], "multiples of 4096"),
        ([Segment(0x1000, 0x1000, bytes(0x1001))], "4097 bytes of data"),
        ([Segment(0, 0, b"")], "empty segment at address 0"),
    ],
)
def test_bad_segments_are_refused(segments: list[Segment], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        make_plan(0, segments, ARCH_X86_64)


def test_sixteen_touching_segments_are_fine() -> None:
    segments = [Segment(0x1000 * i, 0x1000, b"") for i in range(1, 17)]
    assert len(make_plan(0, segments, ARCH_X86_64).segments) == 16
