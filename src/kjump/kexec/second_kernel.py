"""What the saving kernel (B) and the restoring kernel (C) have in common: machine description, command line, window."""

from __future__ import annotations

import os
from pathlib import Path

from kjump.errors import PlanError
from kjump.formats import cmdline
from kjump.formats.bzimage import BzImage
from kjump.gates import Gate
from kjump.host import kernel_memory, procfs
from kjump.initramfs.contents import unpacked_size
from kjump.kexec.linux import LinuxPeer, Surroundings, elf_headers_size, read_kernel, where_it_runs
from kjump.kexec.placement import window_here
from kjump.kexec.plan import Plan
from kjump.kexec.window import WindowLayout, lay_out, low_memory
from kjump.ranges import Range, align_up

CRASH_KERNEL_SIZE = 1 << 20
"""Bytes that a second kernel sets aside for its crash slot: for a door, and for the kernel's own pages of the load."""

MOST_CPUS = 32
"""The largest number of CPUs that a second kernel starts. Each CPU takes memory of its window, and this many
compress some gigabytes a second, which is faster than a target writes."""

_PASSED_ON = (
    "console",
    "earlycon",
    "earlyprintk",
    "acpi",
    "acpi_rsdp",
    "pci",
    "noapic",
    "no_timer_check",
    "nolapic",
    "nox2apic",
    "iommu",
    "intel_iommu",
    "amd_iommu",
    "nomodeset",
    "clocksource",
    "tsc",
    "loglevel",
    "quiet",
    "debug",
    "ignore_loglevel",
    "kjump.status",
)

_BACK_AFTER_PANIC = (f"crashkernel={CRASH_KERNEL_SIZE >> 20}M", "oops=panic", "unknown_nmi_panic")
"""Options that set memory aside for the crash slot, which leads back to A after a panic, and that make an oops and the
watchdog's NMI a panic."""


_LOUD = ("loglevel", "quiet", "debug", "ignore_loglevel")
"""Options that say how much the kernel prints. Without any of them B and C print errors only: serial lines are slow."""


def machine_options(own: str) -> str:
    """Return the options of the command line `own` that concern the machine: console, ACPI, PCI, clock."""
    passed_on = (p for p in cmdline.parse(own).parameters if cmdline.canonical(p.name) in _PASSED_ON)
    return " ".join(cmdline.rewritten(passed_on))


def command_line(own: str, role: str, *, la57: bool, loops_per_jiffy: int = 0, tsc_khz: int = 0, cpus: int = 1) -> str:
    """Return the command line for a second kernel in `role`, from `own`, the running kernel's.

    Options that concern the machine are passed on, those that concern the system are not. The second kernel must use as
    many levels of page tables as A (`la57`: five), and must not move (nokaslr). `loops_per_jiffy` and `tsc_khz` are
    values that A measured, so that the second kernel need not measure them (see docs/performance.md); 0 when unknown,
    `loops_per_jiffy` also when the second kernel is another build than A. A second kernel reads A's memory through
    /dev/mem: with IO_STRICT_DEVMEM it refuses reserved ranges that are busy (seen on 6.12), unless it has
    iomem=relaxed. Of the machine's `cpus` it starts at most MOST_CPUS; the others stay in the wait for SIPI that the
    gate put them in.
    """
    options = ["rcupdate.rcu_expedited=1", "iomem=relaxed", *([] if la57 else ["no5lvl"])]
    line = cmdline.parse(own)
    if not any(name in line for name in _LOUD):
        options.append("quiet")
    if loops_per_jiffy:
        options.append(f"lpj={loops_per_jiffy}")
    if tsc_khz:
        options.append(f"tsc_early_khz={tsc_khz}")
    if cpus > MOST_CPUS:
        options.append(f"nr_cpus={MOST_CPUS}")
    if role != "restorer":
        options += _BACK_AFTER_PANIC
    return cmdline.join([machine_options(own), *options, "nokaslr", "panic=5", f"kjump.role={role}"])


def second_command_line(kernel: BzImage, role: str, kcore: kernel_memory.Kcore) -> str:
    """Return the command line for `kernel` in `role`, with the running kernel's machine options and clock rates."""
    _, flags = procfs.cpu_facts()
    return command_line(
        procfs.command_line(),
        role,
        la57="la57" in flags,
        loops_per_jiffy=kernel_memory.loops_per_jiffy(kcore) if kernel.release == procfs.release() else 0,
        tsc_khz=kernel_memory.tsc_khz(kcore),
        cpus=os.cpu_count() or 1,
    )


def require_room(kernel: BzImage, initrd: bytes, layout: WindowLayout) -> None:
    """Raise PlanError if the window holds kernel and initramfs, but is too small to unpack the initramfs.

    The root file system of an initramfs takes at most half of the kernel's RAM. A kernel that cannot unpack all of it
    starts no job, and there is no way back from it.
    """
    needed = where_it_runs(kernel, layout).end - layout.window.start + len(initrd) + 2 * unpacked_size(initrd)
    if layout.usable.size < needed:
        size = align_up(needed + layout.reserved.size, 1 << 20) >> 20
        raise PlanError(
            f"window {layout.window} is too small for this kernel and initramfs to work in: give {size} MiB"
        )


def describe_machine(gate: Gate, *, vmcoreinfo_note: bytes, low: Range | None = None) -> Surroundings:
    """Return what a second kernel is told of this machine; `low` is low memory to lend it (default: all there is)."""
    ram = procfs.ram()
    _, flags = procfs.cpu_facts()
    return Surroundings(
        memory_map=procfs.firmware_memory_map(),
        ram=ram,
        low=low or low_memory(ram),
        vmcoreinfo_note=vmcoreinfo_note,
        rsdp=procfs.acpi_rsdp(),
        huge="pdpe1gb" in flags,
        gate=gate,
        screen_info=procfs.screen_info(),
    )


def plan_kernel(
    kernel: Path, initrd: Path | None, line: str, *, window: Range | None, window_size: int, preserve: bool
) -> Plan:
    """Return the Plan for any second kernel: a bzImage, an initrd and a command line, in a window.

    KjumpError when no window is found, or the files are not a kernel and an initrd.
    """
    with kernel_memory.Kcore() as kcore:
        note = kcore.vmcoreinfo_note()
        gdt, limit = kernel_memory.boot_cpu_gdt(kcore)
    around = describe_machine(Gate(a_gdt_base=gdt, a_gdt_limit=limit), vmcoreinfo_note=note)
    layout = lay_out(
        window or window_here(window_size),
        elf_headers_size=elf_headers_size(around.ram, note),
        memory_end=around.memory_end,
        huge=around.huge,
    )
    data = initrd.read_bytes() if initrd else b""
    return LinuxPeer(read_kernel(kernel), data, line, layout).plan(around, preserve=preserve)
