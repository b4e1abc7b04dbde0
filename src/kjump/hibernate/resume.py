"""From a cold boot, or from a system that is to be replaced, to C: check image and machine, load C, jump."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kjump.errors import HostError, ImageError
from kjump.formats import bzimage, cmdline, cpio
from kjump.formats.bzimage import BzImage
from kjump.formats.superblock import State
from kjump.gates import Gate
from kjump.hibernate.after_jump import fresh_seed
from kjump.hibernate.clock import Moment
from kjump.hibernate.hooks import Hook
from kjump.host import procfs, root
from kjump.image.layout import Kind
from kjump.image.restore import OpenImage, check_machine, open_image
from kjump.initramfs.contents import with_job
from kjump.kexec import loader, second_kernel
from kjump.kexec.linux import LinuxPeer, Surroundings
from kjump.kexec.plan import Plan
from kjump.kexec.window import WindowLayout, lay_out
from kjump.ranges import Range
from kjump.target import filesystems
from kjump.target.device import Target

ATTEMPTED_AT_BOOT = "attempted"
"""In the details of a snapshot's superblock: a boot has begun to roll back to it."""


@dataclass(frozen=True)
class PreparedResume:
    """A resume or roll-back of which everything has been checked that can be checked before the jump.

    `clock_accuracy` is how far this system's wall clock may be off, in seconds: the one that comes back takes it over.
    """

    target: Target
    opened: OpenImage
    clock_accuracy: float
    _kernel: BzImage
    _initrd: bytes

    def plan(self, report: dict[str, Any]) -> Plan:
        """Return the Plan that starts C, confined to B's window; `report` travels on to A."""
        facts = self.opened.contents.facts
        around, layout = window_of(self.opened)
        job = {
            "gate": layout.gate,
            "cookie": self.opened.superblock.cookie.hex(),
            "target": self.target.place.as_json(),
            "kind": self.opened.contents.kind,
            "report": report | parting_words(self.clock_accuracy),
        }
        lpj = facts.get("loops_per_jiffy", 0) if self._kernel.release == facts["release"] else 0
        line = second_kernel.command_line(procfs.command_line(), "restorer", la57=facts["la57"], loops_per_jiffy=lpj)
        peer_kernel = LinuxPeer(self._kernel, with_job(self._initrd, job), line, layout)
        return peer_kernel.plan(around, preserve=False)

    def go(self, report: dict[str, Any], *, at_boot: bool = False) -> None:
        """Mark the image as attempted, and jump; of a snapshot's only an attempt `at_boot` is noted.

        Returns only by an error, and then the image is still whole.
        """
        plan = self.plan(report)
        loader.current().load(plan)
        superblock = self.opened.superblock
        if self.opened.contents.kind is not Kind.SNAPSHOT:
            self.target.write_superblock(superblock.evolve(state=State.ATTEMPTED))
        elif at_boot:
            self.target.write_superblock(superblock.evolve(details=superblock.details | {ATTEMPTED_AT_BOOT: True}))
        try:
            loader.current().jump()
        except BaseException:
            self.target.write_superblock(self.opened.superblock)
            raise


def open_for_resume(target: Target) -> OpenImage:
    """Check the image on `target` against this machine; ImageError says in one sentence why it cannot be run."""
    opened = open_image(target, states=(State.COMPLETE,))
    _check_this_machine(opened)
    filesystems.check(opened.contents.facts["file_systems"])
    return opened


def prepare_resume(
    target: Target, opened: OpenImage, kernel: bytes, initrd: bytes, *, clock_accuracy: float = 0.001
) -> PreparedResume:
    """Take the image that `open_for_resume` has found good; C is to be of `kernel` and `initrd`."""
    return PreparedResume(target, opened, clock_accuracy, bzimage.parse(kernel), initrd)


def window_of(opened: OpenImage) -> tuple[Surroundings, WindowLayout]:
    """Return this machine, and B's window in it as it was laid out; ImageError when it would be otherwise today."""
    facts = opened.contents.facts
    around = second_kernel.describe_machine(Gate(), vmcoreinfo_note=b"", low=Range(*facts["low"]))
    layout = lay_out(
        Range(*facts["window"]),
        elf_headers_size=facts["elf_headers_size"],
        memory_end=around.memory_end,
        huge=around.huge,
    )
    if layout.gate != facts["gate_address"]:
        raise ImageError("this version of kjump lays the window out differently from the one that saved")
    return around, layout


def parting_words(clock_accuracy: float) -> dict[str, Any]:
    """Return what the system that is left tells A: what time it is, to `clock_accuracy` seconds, and some entropy."""
    return {"clock": Moment.now(clock_accuracy).as_json(), "seed": fresh_seed()}


def _check_this_machine(opened: OpenImage) -> None:
    model, flags = procfs.cpu_facts()
    if "no5lvl" in cmdline.parse(procfs.command_line()):
        flags |= {"la57"}  # hidden by this kernel's own choice; that the CPU has it cannot be told from here
    check_machine(opened.contents, procfs.firmware_memory_map(), model, flags)


def prepare_rollback(
    target: Target, kernel: bytes, initrd: bytes, *, cold: bool = False, clock_accuracy: float = 0.001
) -> PreparedResume:
    """Check the snapshot on `target` against this machine; ImageError says why it cannot be rolled back to.

    `cold` tells that the system it was taken of does not run any more. Without a hook nothing may have been written to
    the snapshot's file systems since (which `check_disks` can look at once more); with one, C checks what it made.
    """
    opened = open_image(target, states=(State.SNAPSHOT,))
    _check_this_machine(opened)
    hook = Hook.of_facts(opened.contents.facts)
    if hook:
        initrd = cpio.join([initrd, hook.packed()])
    else:
        check_disks(opened, cold=cold)
    return PreparedResume(target, opened, clock_accuracy, bzimage.parse(kernel), initrd)


def check_disks(opened: OpenImage, *, cold: bool) -> None:
    """Raise ImageError unless the file systems are as the snapshot knows them."""
    facts = opened.contents.facts
    filesystems.check_unwritten(facts["file_systems"], facts["words"], opened.superblock.cookie.hex(), cold=cold)
    filesystems.check(facts["file_systems"])


def refuse_if_mounted() -> None:
    """Refuse (HostError) while a block device is mounted read-write: its file system would be torn away."""
    for line in root.at("/proc/self/mounts").read_text().splitlines():
        device, where, _, options = line.split()[:4]
        if device.startswith("/dev/") and "rw" in options.split(","):
            raise HostError(f"{device} is mounted at {where}: unmount it, or remount it read-only, before a resume")
