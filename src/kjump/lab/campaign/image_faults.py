"""Faults of images that must not be restored: the machine boots as usual, with the reason."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from kjump.errors import KjumpError, LabError
from kjump.formats.superblock import SUPERBLOCK_SIZE
from kjump.lab.campaign import bit_flips, checkpoints, provocations
from kjump.lab.campaign.bit_flips import NO_DIFFERENCE, BitFlip, BitTrial
from kjump.lab.campaign.campaign import HARDWARE, MIB, Campaign, fault
from kjump.lab.machine.disks import flip
from kjump.lab.machine.installation import Installation
from kjump.lab.machine.qemu_config import BadBlock

_USUAL = "an ordinary boot, with the reason"
_OTHER_CPU = "EPYC"
"""An AMD model like the lab's usual one, because QEMU gives machines with AMD models another memory map."""


@fault("target-gone-at-boot", _USUAL, "does not appear")
def _gone(campaign: Campaign) -> str:
    system = campaign.saved()
    with system.target_disk.open("r+b") as disk:  # another disk is in its place
        disk.write(bytes(SUPERBLOCK_SIZE))
    return provocations.refusal_at_boot(system, "kjump.resume=/dev/vdz")


@fault("target-has-another-name", "the saved system, from the disk that carries its image", "resumed")
def _renamed(campaign: Campaign) -> str:
    outcome, good = checkpoints.boot_and_look(
        campaign.saved(), campaign.prepared.command, "kjump.resume=/dev/disk/by-path/none"
    )
    if not good or not outcome.startswith("resumed"):
        raise LabError(outcome)
    return outcome


@fault("truncated", _USUAL, "ends before byte")
def _truncated(campaign: Campaign) -> str:
    system = campaign.saved()
    with system.target_disk.open("r+b") as disk:
        disk.truncate(campaign.prepared.image().image_length // 2 // 4096 * 4096)
    return provocations.refusal_at_boot(system)


@fault("boot-without-resume", f"{_USUAL}; and again at the next one", "told not to resume")
def _without(campaign: Campaign) -> str:
    system = campaign.saved()
    provocations.refusal_at_boot(system, "kjump.noresume")
    return provocations.refusal_at_boot(system)


@fault("second-resume", "the first resumes the saved system, the second is an ordinary boot", "resumed already")
def _second(campaign: Campaign) -> str:
    system = campaign.saved()
    outcome, good = checkpoints.boot_and_look(system, campaign.prepared.command)
    if not good or not outcome.startswith("resumed"):
        raise LabError(outcome)
    return provocations.refusal_at_boot(system)


@fault("other-memory", _USUAL, "memory map is not the one")
def _memory(campaign: Campaign) -> str:
    more = replace(HARDWARE, memory=HARDWARE.memory + 128 * MIB)
    return provocations.refusal_at_boot(campaign.saved(), hardware=more)


@fault("other-cpu", _USUAL, "the image was saved on a CPU")
def _cpu_model(campaign: Campaign) -> str:
    return provocations.refusal_at_boot(campaign.saved(), hardware=replace(HARDWARE, cpu=_OTHER_CPU))


@fault("file-system-changed", f"{_USUAL}, which names the file system", "ext4 file system on /dev/vda (mounted at /)")
def _changed(campaign: Campaign) -> str:
    system = campaign.saved()
    with system.machine("kjump.resume=") as machine:  # stands for another system, without kjump
        machine.guest.event("ready", timeout=provocations.PATIENCE)
        machine.power_off()
    return provocations.refusal_at_boot(system)


def _damaged_in_the_middle(campaign: Campaign) -> Installation:
    system = campaign.saved()
    flip(system.target_disk, SUPERBLOCK_SIZE + campaign.prepared.image().image_length // 2)
    return system


@fault("restore-failed-once", f"{_USUAL}; and again at the next one", "a boot did not resume it")
def _failed_once(campaign: Campaign) -> str:
    system = _damaged_in_the_middle(campaign)
    provocations.failing_restore(system)
    return provocations.refusal_at_boot(system)


@fault("restore-failed-in-c", "a restart and an ordinary boot; and again at the next one", "tried before and failed")
def _failed_in_third_kernel(campaign: Campaign) -> str:
    system = _damaged_in_the_middle(campaign)
    provocations.failing_restore_in_third_kernel(system)
    return provocations.refusal_at_boot(system)


@fault("read-error", f"{_USUAL}; and again at the next one", "Input/output error")
def _read_error(campaign: Campaign) -> str:
    middle = SUPERBLOCK_SIZE + campaign.prepared.image().image_length // 2
    return provocations.failing_restore(campaign.saved(), BadBlock(disk=1, operation="read", byte=middle))


@fault("bit-flips", "no flipped bit is ever run: refused, or without any effect", "0 taken")
def _flipped(campaign: Campaign) -> str:
    disk = campaign.saved().target_disk
    chosen = bit_flips.choose(disk, campaign.size.flips, random.Random(campaign.seed))
    every = max(1, len(chosen) // max(1, campaign.size.booted_flips))
    booted = chosen[every // 2 :: every][: campaign.size.booted_flips]
    trials = []
    for trial in _trials(campaign, disk, [bit for bit in chosen if bit not in booted], booted):
        campaign.runs.append(trial)
        trials.append(trial)
    how = Counter(each.by for each in trials)
    harmless = sum(each.seen == NO_DIFFERENCE for each in trials)
    taken = sum(not each.ok for each in trials)
    return (
        f"{len(trials)} bits ({how['code']} by the resume's own code on this host, {how['boot']} by booting): "
        f"{len(trials) - harmless - taken} refused, {harmless} without effect, {taken} taken"
    )


def _trials(campaign: Campaign, disk: Path, here: list[BitFlip], booted: list[BitFlip]) -> Iterator[BitTrial]:
    """Try the bits `here` with the resume's code on this host, one by one on `disk`; boot machines for `booted`."""
    restoring = bit_flips.RestoreTrial(disk, HARDWARE.memory)
    for each in here:
        flip(disk, each.offset, each.bit)
        yield _tried("code", each, partial(restoring.verdict, disk))
        flip(disk, each.offset, each.bit)
    for each in booted:
        yield _tried("boot", each, partial(_boot_flipped, campaign, each))


def _tried(how: str, bit: BitFlip, attempt: Callable[[], str]) -> BitTrial:
    try:
        seen, ok = attempt(), True
    except KjumpError as error:
        seen, ok = str(error), False
    return BitTrial(how, bit.part, bit.offset, bit.bit, seen, ok)


def _boot_flipped(campaign: Campaign, bit: BitFlip) -> str:
    system = campaign.saved()
    flip(system.target_disk, bit.offset, bit.bit)
    return provocations.failing_restore(system) if bit.part == "pages" else provocations.refusal_at_boot(system)


FAULTS = (
    _gone,
    _truncated,
    _without,
    _second,
    _memory,
    _cpu_model,
    _changed,
    _failed_once,
    _failed_in_third_kernel,
    _read_error,
    _flipped,
)
