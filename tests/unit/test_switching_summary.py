"""How the lab sums up switches."""

import gc

from kjump.lab.guest.switch_rounds import time_stamps
from kjump.lab.switching import slope, summary


def test_the_first_switch_is_kept_apart_from_the_later_ones() -> None:
    assert summary([9.0, *range(1, 101)]) == {"first": 9.0, "min": 1, "median": 50.5, "p95": 96, "later": 100}
    assert summary([2.0])["median"] == 2.0


def test_a_page_lost_with_each_jump_is_seen_through_noise() -> None:
    noise = [(-1) ** i * 50_000 for i in range(150)]
    assert abs(slope(noise)) < 100
    assert -4300 < slope([n - 4096 * i for i, n in enumerate(noise)]) < -3900


def test_the_time_stamp_counter_can_be_read_again_and_again() -> None:
    read = time_stamps()
    gc.collect()
    stamps = [read() for _ in range(1000)]
    assert stamps == sorted(stamps) and stamps[0] > 0
