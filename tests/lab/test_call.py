"""Calls on the bare machine, on a real kernel; held to the outcome of the emulated machine."""

from pathlib import Path

import pytest

from kjump.lab import calling
from kjump.lab.machine.installation import Hardware


@pytest.mark.parametrize(
    ("version", "hardware"),
    [
        ("6.12", Hardware(memory=512 << 20, cpus=2)),
        ("6.1", Hardware(memory=512 << 20, cpus=2, cpu="max,la57=off")),
    ],
    ids=["6.12", "6.1"],
)
def test_functions_code_in_memory_and_the_bios_are_called(folder: Path, version: str, hardware: Hardware) -> None:
    demo = calling.run(folder, version=version, hardware=hardware, calls=12)
    assert demo.ok, demo.failed
    assert {
        "same_add",
        "same_mean",
        "one_plan",
        "state_kept",
        "fake_image",
        "fault_reported",
        "bios_memory_map",
    } <= set(demo.checks)
    assert set(demo.latency) == {"min", "median", "p95", "max", "ours_median"}
