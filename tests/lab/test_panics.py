"""B fails in ways that no program of it can catch: A is back, unharmed, and says why."""

import pytest
from test_failures import assert_unharmed

from kjump.lab.campaign.provocations import mark
from kjump.lab.machine import kernel_source as kernels
from kjump.lab.machine.installation import TARGET_DEVICE, Hardware, Installation
from kjump.lab.machine.qemu_config import WATCHDOG

PANICKED = "the second kernel panicked: Kernel panic - not syncing: sysrq triggered crash"
HUNG = "the second kernel hung, and was ended by the watchdog"
CASES = {
    "panic:0": PANICKED,
    "panic:1": PANICKED,
    "panic:1@0.5": PANICKED,
    "panic:2": PANICKED,
    "exception": "unexpected RuntimeError in the second kernel",
    "hang": "the job took longer than its time limit of 20 s",
    "hold": HUNG,
    "spin:0": HUNG,
    "spin:1": HUNG,
}


def provoke(installation: Installation, faults: list[str], *more: str) -> None:
    with installation.machine(extra=WATCHDOG) as machine:
        machine.guest.event("ready")
        mark(machine)
        for fault in faults:
            limits = ["--watchdog", "8", "--time-limit", "20" if fault == "hang" else "200"]
            command = ["kjump", "hibernate", "--to", TARGET_DEVICE, "--fault", fault, *limits, *more]
            reply = machine.guest.run(*command, check=False, timeout=300)
            assert reply.status == 1, fault
            assert CASES[fault] in reply.stderr, fault
            assert_unharmed(machine)


def test_panics_and_hangs_of_b_bring_a_back(installation: Installation) -> None:
    provoke(installation, [fault for fault in CASES if fault not in ("panic:2", "exception")])


def test_a_second_kernel_with_fewer_levels_of_paging(installation: Installation) -> None:
    provoke(installation, ["exception", "panic:1"], "--append", "no5lvl")


@pytest.mark.parametrize("cpu", ["max,la57=off", "Skylake-Client"])
def test_a_panic_on_another_cpu(installation: Installation, cpu: str) -> None:
    hardware = Hardware(installation.hardware.memory, cpus=3, cpu=cpu)
    provoke(
        Installation(installation.folder, kernels.build("6.1"), hardware, installation.target_size).prepare(),
        ["panic:2"],
    )
