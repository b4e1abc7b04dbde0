"""Faults of a save: it is refused before the jump, or the first kernel continues with the reason."""

from __future__ import annotations

from collections.abc import Callable

from kjump.errors import LabError
from kjump.formats.superblock import State
from kjump.lab.campaign import provocations
from kjump.lab.campaign.campaign import FAILING_DEVICE, HARDWARE, SMALL_DEVICE, Campaign, ProvokedFault, fault
from kjump.lab.machine.disks import read_superblock
from kjump.lab.machine.installation import ROOT_DEVICE, TARGET_DEVICE

_REFUSED = "refused before the jump"
_BACK = "the system is back with the reason"


def _hibernate(target: str = TARGET_DEVICE, *options: str) -> Callable[[Campaign], str]:
    def provoke(campaign: Campaign) -> str:
        return _last_line(provocations.try_to_hibernate(campaign.running(), *options, target=target).stderr)

    return provoke


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1].removeprefix("kjump: ")


@fault("target-exchanged", _BACK, "was the disk exchanged?")
def _exchanged(campaign: Campaign) -> str:
    machine = campaign.running()
    with provocations.disk_exchanged_when_armed(campaign.running_system.target_disk):
        return _last_line(provocations.try_to_hibernate(machine).stderr)


@fault("cancel", "the system is back, the target is invalid", "the save was cancelled by key")
def _cancelled(campaign: Campaign) -> str:
    seen = _last_line(provocations.cancel_by_key(campaign.running()).stderr)
    state = read_superblock(campaign.running_system.target_disk).state
    if state is not State.INVALID:
        raise LabError(f"the target says {state.name.lower()}")
    return seen


@fault(
    "panic-on-standby",
    "the system is back with the second kernel's panic; the kernel on disk waits on",
    "sysrq triggered crash",
)
def _panic_on_standby(campaign: Campaign) -> str:
    machine = campaign.running()
    with provocations.standing_by_on_disk(machine):
        return _last_line(provocations.try_to_hibernate(machine, "--fault", "panic:1@0.5").stderr)


@fault("standby-damaged", _REFUSED, "is damaged")
def _standby_damaged(campaign: Campaign) -> str:
    machine = campaign.running()
    with provocations.standing_by_on_disk(machine) as file:
        machine.guest.run("dd", "if=/dev/zero", f"of={file}", "bs=64", "seek=30000", "count=1", "conv=notrunc")
        return _last_line(provocations.try_to_hibernate(machine).stderr)


@fault("panic-while-b-boots", "a restart and an ordinary boot, with the reason", "no image was written")
def _panic_while_booting(campaign: Campaign) -> str:
    provocations.panic_while_second_kernel_boots(campaign.running())
    campaign.stop_running()
    return provocations.refusal_at_boot(campaign.running_system)


FAULTS = (
    ProvokedFault("target-missing", _REFUSED, "/dev/nowhere cannot be opened", _hibernate("/dev/nowhere")),
    ProvokedFault("target-mounted", _REFUSED, "it is mounted", _hibernate(ROOT_DEVICE)),
    ProvokedFault("target-too-small", _BACK, "the output is too small", _hibernate(SMALL_DEVICE)),
    ProvokedFault("write-error", _BACK, "Input/output error; this system went on unharmed", _hibernate(FAILING_DEVICE)),
    ProvokedFault(
        "exception",
        _BACK,
        "unexpected RuntimeError in the second kernel",
        _hibernate(TARGET_DEVICE, "--fault", "exception@0.5"),
    ),
    *(
        ProvokedFault(
            f"panic-cpu{cpu}",
            "the system is back with the second kernel's panic",
            "sysrq triggered crash",
            _hibernate(TARGET_DEVICE, "--fault", f"panic:{cpu}@0.5"),
        )
        for cpu in range(HARDWARE.cpus)
    ),
    ProvokedFault(
        "time-limit",
        _BACK,
        "longer than its time limit of 20 s",
        _hibernate(TARGET_DEVICE, "--fault", "hang", "--time-limit", "20"),
    ),
    _exchanged,
    _cancelled,
    _panic_on_standby,
    _standby_damaged,
    _panic_while_booting,
)
