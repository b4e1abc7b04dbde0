"""From a cold boot to C: check the image and the machine, load C into the window, jump."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kjump.errors import HostError, ImageError
from kjump.formats import bzimage
from kjump.formats.bzimage import BzImage
from kjump.formats.superblock import State
from kjump.gates import Gate
from kjump.hibernate import filesystems, peer
from kjump.hibernate.restore import OpenImage, check_machine, open_image
from kjump.hibernate.target import Target
from kjump.initramfs.contents import with_job
from kjump.kexec import host, running
from kjump.kexec.linux import LinuxPeer
from kjump.kexec.plan import Plan
from kjump.kexec.window import lay_out
from kjump.ranges import Range


@dataclass(frozen=True)
class PreparedResume:
    """A resume of which everything has been checked that can be checked before the jump."""

    target: Target
    opened: OpenImage
    _kernel: BzImage
    _initrd: bytes

    def plan(self, report: dict[str, Any]) -> Plan:
        """Return the Plan that starts C, confined to B's window; `report` travels on to A."""
        facts = self.opened.contents.facts
        around = peer.describe_machine(Gate(), vmcoreinfo_note=b"", low=Range(*facts["low"]))
        layout = lay_out(
            Range(*facts["window"]),
            elf_headers_size=facts["elf_headers_size"],
            memory_end=around.memory_end,
            huge=around.huge,
        )
        if layout.gate != facts["gate_address"]:
            raise ImageError("this version of kjump lays the window out differently from the one that saved")
        job = {
            "gate": layout.gate,
            "cookie": self.opened.superblock.cookie.hex(),
            "target": self.target.place.as_json(),
            "report": report,
        }
        lpj = facts.get("loops_per_jiffy", 0) if self._kernel.release == facts["release"] else 0
        line = peer.command_line(running.command_line(), "restorer", la57=facts["la57"], loops_per_jiffy=lpj)
        peer_kernel = LinuxPeer(self._kernel, with_job(self._initrd, job), line, layout)
        return peer_kernel.plan(around, preserve=False)

    def go(self, report: dict[str, Any]) -> None:
        """Mark the image as attempted and jump; returns only by an error, and then the image is still whole."""
        plan = self.plan(report)
        host.load(plan)
        self.target.write_superblock(self.opened.superblock.evolve(state=State.ATTEMPTED))
        try:
            host.jump()
        except BaseException:
            self.target.write_superblock(self.opened.superblock)
            raise


def prepare_resume(target: Target, kernel: bytes, initrd: bytes) -> PreparedResume:
    """Check the image on `target` against this machine; ImageError says in one sentence why it cannot be run."""
    opened = open_image(target, states=(State.COMPLETE,))
    model, flags = running.cpu_facts()
    if "no5lvl" in running.command_line().split():
        flags |= {"la57"}  # hidden by this kernel's own choice; that the CPU has it cannot be told from here
    check_machine(opened.contents, running.firmware_memory_map(), model, flags)
    filesystems.check(opened.contents.facts["file_systems"])
    return PreparedResume(target, opened, bzimage.parse(kernel), initrd)


def refuse_if_mounted() -> None:
    """Refuse (HostError) while a block device is mounted read-write: its file system would be torn away."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        device, where, _, options = line.split()[:4]
        if device.startswith("/dev/") and "rw" in options.split(","):
            raise HostError(f"{device} is mounted at {where}: unmount it, or remount it read-only, before a resume")
