"""From a cold boot, or from a system that is to be replaced, to C: check image and machine, load C, jump."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kjump.errors import HostError, ImageError
from kjump.formats import bzimage, cmdline, cpio
from kjump.formats.bzimage import BzImage
from kjump.formats.superblock import State
from kjump.gates import Gate
from kjump.hibernate.after_jump import fresh_seed
from kjump.hibernate.clock import Moment
from kjump.hibernate.hooks import archive
from kjump.hibernate.jobs import Assignment, RestoreJob
from kjump.hibernate.report import Report
from kjump.host import procfs, root
from kjump.image.facts import Kind
from kjump.image.restore import OpenImage, check_machine, open_image
from kjump.initramfs.contents import with_job
from kjump.kexec import loader, second_kernel
from kjump.kexec.linux import LinuxPeer, Surroundings
from kjump.kexec.plan import Plan
from kjump.kexec.window import WindowLayout, lay_out
from kjump.target import filesystems
from kjump.target.device import Target


class OtherMachineError(ImageError):
    """The image was saved on another machine, or on this one with other hardware."""


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

    def plan(self, report: Report) -> Plan:
        """Return the Plan that starts C, confined to B's window; `report` travels on to A."""
        facts = self.opened.contents.facts
        around, layout = window_of(self.opened)
        job = RestoreJob(
            facts.kind, self.target.place, self.opened.superblock.cookie, with_clock(report, self.clock_accuracy)
        )
        system = facts.system
        lpj = system.loops_per_jiffy if self._kernel.release == system.release else 0
        line = second_kernel.command_line(procfs.command_line(), "restorer", la57=system.la57, loops_per_jiffy=lpj)
        initrd = with_job(self._initrd, Assignment(job, layout.gate).encode())
        return LinuxPeer(self._kernel, initrd, line, layout).plan(around, preserve=False)

    def go(self, report: Report, *, boot: str = "") -> None:
        """Mark the image as attempted, and jump; a snapshot is marked with the identity of the `boot` that begins.

        Returns only by an error, and then the image is still whole.
        """
        plan = self.plan(report)
        loader.current().load(plan)
        superblock = self.opened.superblock
        if self.opened.contents.facts.kind is not Kind.SNAPSHOT:
            self.target.write_superblock(superblock.evolve(state=State.ATTEMPTED))
        elif boot:
            self.target.write_superblock(superblock.evolve(details=replace(superblock.details, rollback_boot=boot)))
        try:
            loader.current().jump()
        except BaseException:
            self.target.write_superblock(self.opened.superblock)
            raise


def open_for_resume(target: Target) -> OpenImage:
    """Check the image on `target` against this machine; ImageError says in one sentence why it cannot be run."""
    opened = open_image(target, states=(State.COMPLETE,))
    _check_this_machine(opened)
    filesystems.check(opened.contents.facts.file_systems)
    return opened


def prepare_resume(
    target: Target, opened: OpenImage, kernel: bytes, initrd: bytes, *, clock_accuracy: float = 0.001
) -> PreparedResume:
    """Take the image that `open_for_resume` has found good; C is to be of `kernel` and `initrd`."""
    return PreparedResume(target, opened, clock_accuracy, bzimage.parse(kernel), initrd)


def window_of(opened: OpenImage) -> tuple[Surroundings, WindowLayout]:
    """Return this machine, and B's window in it as it was laid out; ImageError when it would be otherwise today."""
    system = opened.contents.facts.system
    around = second_kernel.describe_machine(Gate(), vmcoreinfo_note=b"", low=system.low)
    layout = lay_out(
        system.window,
        elf_headers_size=system.elf_headers_size,
        memory_end=around.memory_end,
        huge=around.huge,
    )
    if layout.gate != system.gate_address:
        raise ImageError("this version of kjump lays the window out differently from the one that saved")
    return around, layout


def with_clock(report: Report, clock_accuracy: float) -> Report:
    """Return `report` with what time it is here, to `clock_accuracy` seconds, and some entropy, for who is restored."""
    return replace(report, clock=Moment.now(clock_accuracy), seed=fresh_seed())


def _check_this_machine(opened: OpenImage) -> None:
    model, flags = procfs.cpu_facts()
    if "no5lvl" in cmdline.parse(procfs.command_line()):
        flags |= {"la57"}  # hidden by this kernel's own choice; that the CPU has it cannot be told from here
    try:
        check_machine(opened.contents, procfs.firmware_memory_map(), model, flags)
    except ImageError as error:
        raise OtherMachineError(str(error)) from None


def prepare_rollback(
    target: Target, kernel: bytes, initrd: bytes, *, cold: bool = False, clock_accuracy: float = 0.001
) -> PreparedResume:
    """Check the snapshot on `target` against this machine; ImageError says why it cannot be rolled back to.

    `cold` tells that the system it was taken of does not run any more. Without a hook nothing may have been written to
    the snapshot's file systems since (which `check_disks` can look at once more); with one, C checks what it made.
    """
    opened = open_image(target, states=(State.SNAPSHOT,))
    if cold:
        _refuse_if_it_failed_before(opened)
    _check_this_machine(opened)
    hook = opened.contents.facts.hook
    if hook:
        initrd = cpio.join([initrd, archive(hook)])
    else:
        check_disks(opened, cold=cold)
    return PreparedResume(target, opened, clock_accuracy, bzimage.parse(kernel), initrd)


def _refuse_if_it_failed_before(opened: OpenImage) -> None:
    """Refuse (ImageError) what an earlier boot began and did not end: it would fail again, and again at each boot."""
    details = opened.superblock.details
    if details.rollback_boot:
        why = details.reason or "it did not come to its end"
        raise ImageError(
            f"an earlier boot tried to roll back to it, and failed ({why}); `kjump rollback` in a running system tries "
            "again"
        )


def check_disks(opened: OpenImage, *, cold: bool) -> None:
    """Raise ImageError unless the file systems are as the snapshot knows them."""
    facts = opened.contents.facts
    filesystems.check_unwritten(facts.file_systems, facts.departure, opened.superblock.cookie.hex(), cold=cold)
    filesystems.check(facts.file_systems)


def refuse_if_mounted() -> None:
    """Refuse (HostError) while a block device is mounted read-write: its file system would be torn away."""
    for line in root.at("/proc/self/mounts").read_text().splitlines():
        device, where, _, options = line.split()[:4]
        if device.startswith("/dev/") and "rw" in options.split(","):
            raise HostError(f"{device} is mounted at {where}: unmount it, or remount it read-only, before a resume")
