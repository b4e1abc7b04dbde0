"""B fails in ways that no program of it can catch: A is back, unharmed, and says why."""

import pytest
from test_failures import assert_unharmed, mark

from kjump.formats.superblock import State
from kjump.lab.faults import WATCHDOG
from kjump.lab.scene import TARGET_DEVICE, Scene
from test_failures import read_superblock

PANIC = "the second kernel panicked: "
CASES = {
    "panic:0": PANIC + "Kernel panic - not syncing: sysrq triggered crash",
    "panic:1": PANIC + "Kernel panic - not syncing: sysrq triggered crash",
    "panic:1@0.5": PANIC + "Kernel panic - not syncing: sysrq triggered crash",
    "hang": "the job took longer than its time limit of 20 s",
    "hold": PANIC + "Kernel panic - not syncing: NMI: Not continuing",
    "spin:0": PANIC + "Kernel panic - not syncing: NMI: Not continuing",
    "spin:1": PANIC + "Kernel panic - not syncing: NMI: Not continuing",
}


def test_panics_and_hangs_of_b_bring_a_back(scene: Scene) -> None:
    with scene.machine(extra=WATCHDOG) as machine:
        machine.guest.event("ready")
        mark(machine)
        for fault, reason in CASES.items():
            options = ["--fault", fault, "--watchdog", "8"]
            if fault == "hang":
                options += ["--time-limit", "20"]
            reply = machine.guest.run("kjump", "hibernate", "--to", TARGET_DEVICE, *options, check=False)
            assert reply.status == 1, fault
            assert reason in reply.stderr, fault
            assert_unharmed(machine)
