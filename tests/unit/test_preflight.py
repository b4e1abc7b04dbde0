"""How much memory A must have free, and the window that is taken when there is less."""

import pytest

from kjump.hibernate import preflight
from kjump.kexec import running
from kjump.kexec.window import SIZES

MIB = 1 << 20


def _memory(monkeypatch: pytest.MonkeyPatch, available: int, *, after: int | None = None) -> list[int]:
    """Let the kernel have `available` MiB, and `after` when room was made; return what room was asked for."""
    now = {"MemAvailable": available * MIB, "MemTotal": 4096 * MIB, "SwapFree": 0}
    asked: list[int] = []

    def make_room(needed: int) -> None:
        asked.append(needed)
        now["MemAvailable"] = (available if after is None else after) * MIB

    monkeypatch.setattr(running, "meminfo", lambda: dict(now))
    monkeypatch.setattr(preflight, "make_room", make_room)
    return asked


@pytest.mark.parametrize(
    ("available", "after", "size"),
    [
        (4000, None, 128),
        (168, None, 128),
        (167, 167, 96),
        (100, 168, 128),
        (135, 135, 80),
        (112, 112, 80),
        (50, 60, 80),
    ],
)
def test_the_largest_window_that_leaves_a_enough(
    monkeypatch: pytest.MonkeyPatch, available: int, after: int | None, size: int
) -> None:
    asked = _memory(monkeypatch, available, after=after)
    assert preflight.window_size_that_fits() == size * MIB
    assert bool(asked) == (available < 168)


def test_what_is_missing_is_said_in_mebibytes(monkeypatch: pytest.MonkeyPatch) -> None:
    _memory(monkeypatch, 50)
    check = preflight._free_memory(SIZES[-1])
    assert not check.ok
    assert "50 MiB available, 112 MiB needed" in check.detail
    assert "free 62 MiB" in check.remedy


def test_a_window_beyond_half_of_ram_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _memory(monkeypatch, 4000)
    check = preflight._free_memory(3000 * MIB)
    assert not check.ok and "at most half of RAM (2048 MiB)" in check.detail
