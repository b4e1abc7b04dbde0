"""The configuration of a virtual machine, and QEMU's arguments for it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kjump.lab.machine.guest_channel import PORT_NAME

CPU = "max,erms=off,fsrm=off"
"""A CPU with all features of QEMU except fast string instructions: QEMU's translator executes `rep movsb` and
`rep stosb` byte by byte, and kernels and libraries prefer them on CPUs that report them as fast."""
WATCHDOG = ("-device", "i6300esb", "-action", "watchdog=inject-nmi")
"""Further arguments for a machine with a watchdog that sends an NMI."""


@dataclass(frozen=True)
class BadBlock:
    """A bad block: each `operation` ("read", "write") of the block with `byte` of disk `disk` (0: vda) fails."""

    disk: int
    operation: str
    byte: int

    def rule(self, number: int) -> list[str]:
        """Return the options of a -drive with blkdebug for this block as rule `number`: permanent EIO errors."""
        rule = {"event": "none", "iotype": self.operation, "errno": "5", "sector": str(self.byte // 512), "once": "off"}
        return [f"file.inject-error.{number}.{name}={value}" for name, value in rule.items()]


@dataclass(frozen=True)
class VirtualMachineConfig:
    """A machine to start: sizes in bytes, `disks` raw image files in the order vda, vdb, ...

    `cpu` is a QEMU CPU model; `extra` are more QEMU arguments; `accelerator` is the result of `accelerator()`.
    `incoming` is a state that `VirtualMachine.save_state` wrote, from which the machine continues. With `preallocate`
    the host allocates all of the machine's memory before it starts, for measurements.
    """

    kernel: Path
    initrd: Path | None
    command_line: str
    memory: int = 768 << 20
    cpus: int = 2
    cpu: str = CPU
    disks: tuple[Path, ...] = ()
    extra: tuple[str, ...] = ()
    accelerator: str = "tcg"
    bad_blocks: tuple[BadBlock, ...] = ()
    incoming: Path | None = None
    preallocate: bool = False

    def arguments(self, folder: Path) -> list[str]:
        """Return QEMU's arguments; its sockets lie in `folder`."""
        accelerator = "tcg,thread=multi" if self.accelerator == "tcg" else self.accelerator
        machine = ["-nodefaults", "-display", "none", "-no-reboot", "-machine", "q35", "-accel", accelerator]
        machine += ["-cpu", self.cpu, "-smp", str(self.cpus), "-m", f"{self.memory >> 20}M"]
        # Linux counts timer interrupts in a loop at boot, and panics ("IO-APIC + timer doesn't work!") when an emulator
        # on a busy host delivers them late. Under KVM Linux skips this check by itself.
        machine += ["-kernel", str(self.kernel), "-append", f"{self.command_line} no_timer_check"]
        if self.initrd is not None:
            machine += ["-initrd", str(self.initrd)]
        if self.preallocate:
            backend = f"memory-backend-ram,id=ram,size={self.memory >> 20}M,prealloc=on,prealloc-threads={self.cpus}"
            machine += ["-object", backend, "-machine", "memory-backend=ram", "-S"]
        if self.incoming is not None:
            machine += ["-incoming", f"exec:cat {shlex.quote(str(self.incoming))}"]
        return [*machine, *_channels(folder), *self._disks(), "-device", "virtio-rng-pci", *self.extra]

    def _disks(self) -> Iterator[str]:
        for index, path in enumerate(self.disks):
            bad = [block for block in self.bad_blocks if block.disk == index]
            options = [f"file={_escaped(path)}"]
            if bad:
                options = ["file.driver=blkdebug", "file.image.driver=file", f"file.image.filename={_escaped(path)}"]
            options += [option for number, block in enumerate(bad) for option in block.rule(number)]
            options += ["format=raw", "if=none", f"id=disk{index}", "cache=none", "aio=threads"]
            yield from ("-drive", ",".join(options), "-device", f"virtio-blk-pci,drive=disk{index}")


def _escaped(path: Path) -> str:
    """Return `path` for a comma-separated list of QEMU options: commas in it are doubled."""
    return str(path).replace(",", ",,")


def _channels(folder: Path) -> list[str]:
    def chardev(name: str) -> str:
        return f"socket,id={name},path={_escaped(folder / name)},server=on,wait=off"

    return [
        *("-chardev", chardev("qmp"), "-mon", "chardev=qmp,mode=control"),
        *("-chardev", chardev("console"), "-serial", "chardev:console"),
        *("-device", "virtio-serial-pci", "-chardev", chardev("status")),
        *("-device", f"virtserialport,chardev=status,name={PORT_NAME}"),
    ]
