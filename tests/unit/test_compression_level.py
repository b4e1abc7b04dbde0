"""The zstd level that measuring finds."""

import os
import random
from pathlib import Path

import pytest

from kjump.image import compression
from kjump.image.compression import Trial, choose

MB = 1_000_000
TRIALS = [Trial(3, 120 * MB, 0.60), Trial(1, 130 * MB, 0.62), Trial(-1, 170 * MB, 0.70), Trial(-5, 190 * MB, 0.80)]


@pytest.mark.parametrize(
    ("threads", "write_speed", "expected"),
    [
        (2, 20 * MB, 3),  # the target is slow: the smallest image
        (8, 100 * MB, 3),  # so it is with many CPUs
        (2, 2000 * MB, -5),  # the target takes all: the fastest
        (2, 250 * MB, -1),
        (2, 200 * MB, 1),
    ],
)
def test_the_slower_of_compressing_and_writing_decides(threads: int, write_speed: float, expected: int) -> None:
    chosen = choose(TRIALS, threads=threads, write_speed=write_speed)

    def seconds(trial: Trial) -> float:
        return max(1 / (trial.speed * threads), trial.ratio / write_speed)

    best = min(map(seconds, TRIALS))
    taken = next(t for t in TRIALS if t.level == chosen)
    assert seconds(taken) <= 1.1 * best
    assert all(t.ratio >= taken.ratio for t in TRIALS if seconds(t) <= 1.1 * best)
    assert chosen == expected


def test_contents_that_do_not_shrink_are_not_worth_any_effort() -> None:
    trials = [Trial(3, 300 * MB, 1.0), Trial(1, 600 * MB, 1.0), Trial(-1, 900 * MB, 1.0), Trial(-5, 900 * MB, 1.0)]
    assert choose(trials, threads=1, write_speed=5000 * MB) in (-1, -5)


def test_the_sample_is_spread_over_all_spans(tmp_path: Path) -> None:
    numbered = b"".join(i.to_bytes(4, "little") for i in range(4 << 18))
    file = tmp_path / "memory"
    file.write_bytes(numbered)
    lengths = [random.Random(i).randrange(4096, 600_000, 4096) for i in range(12)]
    spans, at = [], 0
    for length in lengths:
        length = min(length, len(numbered) - at)
        spans.append((0, at, length))
        at += length
    fd = os.open(file, os.O_RDONLY)
    try:
        data = compression.sample(fd, spans)
        assert compression.sample(fd, []) == b""
    finally:
        os.close(fd)
    assert 0 < len(data) <= 4 << 20
    numbers = [int.from_bytes(data[i : i + 4], "little") * 4 for i in range(0, len(data), 4)]
    assert min(numbers) < at // 16 and max(numbers) > at * 14 // 16 and max(numbers) < at
