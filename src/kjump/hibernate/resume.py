"""Resume and roll-back: check image and machine, load the restoring kernel (C), and jump to it."""

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
    """A resume or roll-back that has passed every check that is possible before the jump.

    `clock_accuracy` is the largest error of this system's wall clock, in seconds: the restored system is set by it.
    """

    target: Target
    opened: OpenImage
    clock_accuracy: float
    _kernel: BzImage
    _initrd: bytes

    def plan(self, report: Report) -> Plan:
        """Return the Plan that starts C, confined to the image's window; `report` is for the restored system."""
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
        """Mark the image as attempted, and jump; a snapshot is marked with the identity of the `boot` that restores it.

        Returns only by an exception; the image is still complete then.
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
    """Open the image on `target` and check it against this machine; ImageError when it cannot be run here."""
    opened = open_image(target, states=(State.COMPLETE,))
    _check_this_machine(opened)
    filesystems.check(opened.contents.facts.file_systems)
    return opened


def prepare_resume(
    target: Target, opened: OpenImage, kernel: bytes, initrd: bytes, *, clock_accuracy: float = 0.001
) -> PreparedResume:
    """Prepare to resume the image that `open_for_resume` returned; C is made of `kernel` and `initrd`."""
    return PreparedResume(target, opened, clock_accuracy, bzimage.parse(kernel), initrd)


def window_of(opened: OpenImage) -> tuple[Surroundings, WindowLayout]:
    """Return this machine and the window as it was laid out for the save; ImageError when it would differ here."""
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
    """Return `report` with entropy and this system's clock, accurate to `clock_accuracy` seconds."""
    return replace(report, clock=Moment.now(clock_accuracy), seed=fresh_seed())


def _check_this_machine(opened: OpenImage) -> None:
    model, flags = procfs.cpu_facts()
    if "no5lvl" in cmdline.parse(procfs.command_line()):
        flags |= {"la57"}  # booted with no5lvl: /proc/cpuinfo does not tell whether the CPU has it
    try:
        check_machine(opened.contents, procfs.firmware_memory_map(), model, flags)
    except ImageError as error:
        raise OtherMachineError(str(error)) from None


def prepare_rollback(
    target: Target, kernel: bytes, initrd: bytes, *, cold: bool = False, clock_accuracy: float = 0.001
) -> PreparedResume:
    """Check the snapshot on `target` against this machine; ImageError, with the reason, when it cannot be restored.

    `cold` tells that the system that was saved does not run any more. Without a hook the snapshot's file systems must
    be unchanged since the save (`check_disks` checks that again later); with one, C checks what the hook has restored.
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
    """Raise ImageError if an earlier boot attempted this image and failed: it would fail again at each boot."""
    details = opened.superblock.details
    if details.rollback_boot:
        why = details.reason or "it did not come to its end"
        raise ImageError(
            f"an earlier boot tried to roll back to it, and failed ({why}); `kjump rollback` in a running system tries "
            "again"
        )


def check_disks(opened: OpenImage, *, cold: bool) -> None:
    """Raise ImageError unless the file systems are as the snapshot recorded them."""
    facts = opened.contents.facts
    filesystems.check_unwritten(facts.file_systems, facts.departure, opened.superblock.cookie.hex(), cold=cold)
    filesystems.check(facts.file_systems)


def refuse_if_mounted() -> None:
    """Raise HostError while a block device is mounted read-write: its file system would lose what is not written."""
    for line in root.at("/proc/self/mounts").read_text().splitlines():
        device, where, _, options = line.split()[:4]
        if device.startswith("/dev/") and "rw" in options.split(","):
            raise HostError(f"{device} is mounted at {where}: unmount it, or remount it read-only, before a resume")
