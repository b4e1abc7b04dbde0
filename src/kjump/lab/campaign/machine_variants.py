"""Variants of machines and kernel options with which a hibernation must work too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kjump.lab import hibernation
from kjump.lab.campaign.campaign import HARDWARE, Campaign, ProvokedFault
from kjump.lab.hibernation import HibernationOptions
from kjump.lab.machine.installation import Hardware

_MWAIT_CPU = "Skylake-Client"
_BACK = "the saved system is back with all its work"
_PHRASE = "checks hold"


def _round_trip(options: str = "", hardware: Hardware = HARDWARE) -> Callable[[Campaign], str]:
    def provoke(campaign: Campaign) -> str:
        how = HibernationOptions(kernel_options=options)
        demo = hibernation.run(campaign.scratch, version=campaign.version, hardware=hardware, how=how)
        return f"all {len(demo.checks)} checks hold" if demo.ok else f"failed: {', '.join(demo.failed)}"

    return provoke


FAULTS = (
    ProvokedFault("init-on-free", _BACK, _PHRASE, _round_trip("init_on_free=1")),
    ProvokedFault("mwait-cpu", _BACK, _PHRASE, _round_trip(hardware=replace(HARDWARE, cpus=3, cpu=_MWAIT_CPU))),
    ProvokedFault("no5lvl", _BACK, _PHRASE, _round_trip("no5lvl")),
)
