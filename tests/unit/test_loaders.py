"""The one interface to whatever loads and jumps."""

from typing import Any

import pytest

from kjump.errors import HostError
from kjump.init import leave
from kjump.kexec import loader, syscalls
from kjump.kexec.plan import ON_CRASH, SEGMENT_MAX
from kjump.kexec.way_back import WayBack


class Recording:
    """Loads nothing, and remembers what it was asked for."""

    max_segments, share_of_ram, gate_restores_gdt = 64, 1.0, False

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **_: self.asked.append(name)


def test_the_system_calls_are_in_use_unless_something_else_is() -> None:
    assert isinstance(loader.current(), syscalls.SystemCalls)
    assert (loader.current().max_segments, loader.current().share_of_ram) == (SEGMENT_MAX, 0.5)
    fake = Recording()
    with pytest.raises(HostError), loader.used(fake):
        assert loader.current() is fake
        raise HostError("within")
    assert isinstance(loader.current(), syscalls.SystemCalls)


def test_the_methods_make_the_system_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []

    def syscall(number: int, *arguments: Any) -> int:
        made.append((number, *(a.value for a in arguments if hasattr(a, "value"))))
        return 0

    monkeypatch.setattr(syscalls, "_syscall", syscall)
    monkeypatch.setattr(syscalls, "_number", lambda table: table["x86_64"])
    plan = WayBack(gate=0x7FF_0000, tables=0x7FF_5000).plan()
    calls = syscalls.SystemCalls()
    calls.load(plan)
    calls.unload(plan.flags | ON_CRASH)
    for end in (calls.power_off, calls.restart):
        with pytest.raises(HostError, match="did not"):
            end()
    assert made == [
        (246, plan.entry, 1, plan.flags),
        (246, 0, 0, plan.flags | ON_CRASH),
        (169, 0xFEE1DEAD, 672274793, 0x4321FEDC),
        (169, 0xFEE1DEAD, 672274793, 0x01234567),
    ]


def test_a_second_kernel_opens_its_way_back_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Recording()
    monkeypatch.setattr(leave.procfs, "crash_kernel", lambda: None)
    with loader.used(fake):
        leave.open_way(WayBack(gate=0x7FF_0000, tables=0x7FF_5000))
    assert fake.asked == ["load"]
