"""The mailbox page."""

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import FormatError
from kjump.kexec import mailbox
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

REPORTS = st.dictionaries(st.text(max_size=20), st.one_of(st.integers(), st.text(max_size=60)), max_size=8)


@given(
    cookie=st.binary(min_size=16, max_size=16),
    outcome=st.sampled_from(mailbox.Outcome),
    head=st.integers(0, 2**64 - 1),
    report=REPORTS,
)
def test_a_page_comes_back(cookie: bytes, outcome: mailbox.Outcome, head: int, report: dict[str, Any]) -> None:
    page = mailbox.encode(cookie, outcome, head, report)
    assert len(page) == PAGE_SIZE
    assert mailbox.decode(page) == mailbox.Contents(cookie, outcome, head, report)


@given(st.binary(max_size=200).map(lambda head: head.ljust(PAGE_SIZE, b"\0")))
def test_any_page_is_read_or_refused(page: bytes) -> None:
    try:
        mailbox.decode(page)
    except FormatError as error:
        assert "mailbox" in str(error)


def test_a_report_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        mailbox.encode(bytes(16), 0, 0, {"reason": "x" * PAGE_SIZE})


needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="physical addresses are shown to root only: run as root to force this"
)


@needs_root
def test_a_page_of_this_process_is_found_posted_and_read() -> None:
    box = mailbox.Mailbox(avoid=RangeSet())
    assert box.address > 0 and box.address % PAGE_SIZE == 0
    box.post(0x1234)
    assert box.read() == (mailbox.Outcome.NONE, {})


@needs_root
def test_a_page_in_the_window_is_not_taken() -> None:
    taken = mailbox.Mailbox(avoid=RangeSet())
    avoid = RangeSet([Range.of_size(taken.address // (16 << 20) * (16 << 20), 16 << 20)])
    assert mailbox.Mailbox(avoid=avoid).address not in avoid
