"""What /proc and /sys say about the running kernel and the machine.

Nothing is cached: a caller that needs a consistent value reads it once and keeps it.
"""

from __future__ import annotations

import os
import resource
import struct
from pathlib import Path

from kjump.errors import HostError
from kjump.formats.bootparams import SCREEN_INFO_SIZE
from kjump.formats.e820 import E820Entry, IomemResource, parse_firmware_memmap, parse_iomem
from kjump.formats.superblock import MemoryUse
from kjump.host import root
from kjump.ranges import Range, RangeSet


def _read_text(path: str, errors: str = "replace") -> str:
    try:
        return root.at(path).read_text("utf-8", errors)
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from None


def command_line() -> str:
    """Return the running kernel's command line (/proc/cmdline), for `formats.cmdline` to parse."""
    return _read_text("/proc/cmdline", errors="surrogateescape").removesuffix("\n")


def release() -> str:
    """Return the running kernel's release, as `uname -r`."""
    return os.uname().release


def firmware_memory_map() -> tuple[E820Entry, ...]:
    """Return the firmware's memory map, by address; HostError when the kernel does not export it."""
    folder = root.at("/sys/firmware/memmap")
    try:
        found = [_three_texts(entry) for entry in folder.iterdir()]
    except OSError as error:
        raise HostError(f"cannot read {folder}: {error.strerror}; CONFIG_FIRMWARE_MEMMAP is needed") from None
    return tuple(parse_firmware_memmap(found))


def _three_texts(entry: Path) -> tuple[str, str, str]:
    start, end, kind = ((entry / name).read_text() for name in ("start", "end", "type"))
    return start, end, kind


def iomem() -> list[IomemResource]:
    """Return /proc/iomem; FormatError when addresses are hidden from this user."""
    return parse_iomem(_read_text("/proc/iomem"))


def ram() -> RangeSet:
    """Return the physical ranges (bytes) that the running kernel uses as RAM, those added by drivers included."""
    return RangeSet(r.range for r in iomem() if r.is_ram)


def ram_of_drivers() -> list[IomemResource]:
    """Return the RAM that drivers added after the boot, which a kernel that has just booted does not have."""
    return [r for r in iomem() if r.ram_driver]


def meminfo() -> dict[str, int]:
    """Return /proc/meminfo: name -> bytes."""
    lines = (line.split() for line in _read_text("/proc/meminfo").splitlines() if line.endswith("kB"))
    return {words[0].rstrip(":"): int(words[1]) << 10 for words in lines}


def free_blocks() -> int:
    """Return the number of free blocks, of all orders, in the kernel's page allocator; 0 when it is not exported."""
    try:
        lines = root.at("/proc/buddyinfo").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(count) for line in lines for count in line.partition(" zone ")[2].split()[1:])


def memory_use() -> MemoryUse:
    """Return how much memory this kernel has left, and the largest memory use of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return MemoryUse(peak, meminfo()["MemAvailable"])


def crash_kernel() -> Range | None:
    """Return the physical range that the running kernel set aside for a crash image, or None."""
    return next((r.range for r in iomem() if r.name == "Crash kernel"), None)


def vmcoreinfo_place() -> tuple[int, int]:
    """Return where the running kernel's VMCOREINFO note lies: physical address and size in bytes."""
    address, size = _read_text("/sys/kernel/vmcoreinfo").split()
    return int(address, 16), int(size, 16)


def cpu_facts() -> tuple[str, frozenset[str]]:
    """Return the model name and the feature flags of the first CPU, from /proc/cpuinfo."""
    model, flags = "", frozenset[str]()
    for line in _read_text("/proc/cpuinfo").split("\n\n", 1)[0].splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            model = value.strip()
        elif name.strip() == "flags":
            flags = frozenset(value.split())
    return model, flags


def acpi_rsdp() -> int:
    """Return the physical address of the ACPI root pointer that this kernel was given, or 0 if it was given none."""
    try:
        data = root.at("/sys/kernel/boot_params/data").read_bytes()
        rsdp = int(struct.unpack_from("<Q", data, 0x70)[0])
        if rsdp:
            return rsdp
        for line in root.at("/sys/firmware/efi/systab").read_text().splitlines():
            name, _, value = line.partition("=")
            if name in ("ACPI20", "ACPI"):
                return int(value, 0)
    except OSError:
        pass
    return 0


def screen_info() -> bytes:
    """Return the screen_info (64 bytes) that this kernel was started with; empty when it is not exported."""
    try:
        return Path("/sys/kernel/boot_params/data").read_bytes()[:SCREEN_INFO_SIZE]
    except OSError:
        return b""


def kernel_config() -> dict[str, str] | None:
    """Return the running kernel's configuration (option without CONFIG_ -> value), or None when it is not found."""
    import gzip

    for path in (root.at("/proc/config.gz"), root.at(f"/boot/config-{release()}")):
        try:
            data = path.read_bytes()
        except OSError:
            continue
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode(errors="replace")
        lines = (line.partition("=") for line in text.splitlines() if line.startswith("CONFIG_"))
        return {name[len("CONFIG_") :]: value for name, _, value in lines}
    return None
