"""Preflight: refuse before the jump, not after, and say what to do."""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from kjump.errors import HostError, KjumpError
from kjump.host import kernel_memory, procfs, root
from kjump.host.libc import libc
from kjump.image.needs import memory_to_save
from kjump.kexec import loader, syscalls
from kjump.kexec.placement import window_here
from kjump.kexec.second_kernel import MOST_CPUS
from kjump.kexec.window import ALIGNMENT, HIGHEST, SIZES, low_memory
from kjump.memory import PAGE_SIZE
from kjump.ranges import align_up
from kjump.target import mounts
from kjump.target.file import FileTarget, open_for_image

_NEEDED = (
    "KEXEC",
    "KEXEC_JUMP",
    "HIBERNATION",
    "CRASH_DUMP",
    "PROC_VMCORE",
    "PROC_KCORE",
    "KALLSYMS_ALL",
    "DEVMEM",
)
MIB = 1 << 20
_SLACK = 32 * MIB
"""Memory that a load takes beside the window: kernel and initramfs as read and as joined, low memory, lists."""
_DRIFT = 8 * MIB
"""What checking takes itself: so much more must be there when a window is chosen, or it may be refused then."""

_USUAL_LISTS = 16 * MIB
"""What the usual windows have for lists: of 128 MiB 70 are free in the lab at the end of a save."""
_USUAL_CPUS = 8
_CPU = 1 * MIB
"""What a further CPU takes of B, reckoned: its area (380 KiB seen with two), the kernel's threads, their stacks."""
_SHADOW = 12
"""A window's own page list takes up to a twelfth of it: 337 bytes for a page while it is read, measured."""

_LISTS_LIMIT = Path("/proc/sys/vm/percpu_pagelist_high_fraction")
_LEAST_LISTS = 1_000_000
"""The fraction of memory for the lists of all CPUs: a millionth."""
_STATISTICS = Path("/proc/sys/vm/stat_refresh")
_ZONES = Path("/proc/zoneinfo")
_REFRESHES = 8
_SHORT = 512
"""Pages on a list: a list no longer than that is let be."""

_AS_ROOT = "run as root"
_FILE_SYSTEMS = "file systems"
_LEAST_TARGET = 4 << 20
"""No image of a Linux is as small as this."""


@dataclass(frozen=True)
class Check:
    """One thing looked at: its `name`, whether it is `ok`, what was found, and what to do when it is not."""

    name: str
    ok: bool
    detail: str
    remedy: str


def checks(*, target: str | None, window_size: int | None, accept_unseen: Collection[str] | None = ()) -> list[Check]:
    """Look at everything that a hibernation needs; never raises for what it finds.

    `window_size` in bytes; None when the second kernel is there already, so that no place for it need be found. Types
    of file systems in `accept_unseen` are taken although a change of them would not be noticed; with None, for what
    is not resumed, file systems are of no matter.
    """
    found = [
        _privileges(),
        _architecture(),
        _kernel_config(),
        _lockdown(),
        _kexec_disabled(),
        _guard("symbols", _only_root(_symbols), "set kernel.kptr_restrict to 0 or 1"),
        _guard("paging", _paging, "run on x86_64"),
        _guard("memory of drivers", _memory_of_drivers, "take that memory offline and away from the driver first"),
    ]
    if accept_unseen is not None:
        found.append(_file_systems(accept_unseen))
    if window_size is not None:
        found += [
            _guard("window", _only_root(lambda: _window(window_size)), "take a smaller window with --window-size"),
            _free_memory(window_size),
        ]
    if target is not None:
        found.append(
            _guard(
                "target",
                _only_root(lambda: _target(target)),
                "name a partition or disk that nothing else uses, or a file of `kjump target create`",
            )
        )
    return found


def require(found: Iterable[Check]) -> None:
    """Raise HostError naming the first check that failed, and what to do."""
    for check in found:
        if not check.ok:
            raise HostError(f"{check.name}: {check.detail}; {check.remedy}")


def _guard(name: str, look: Callable[[], str], remedy: str) -> Check:
    try:
        return Check(name, True, look(), remedy)
    except _NotRootError as error:
        return Check(name, False, str(error), _AS_ROOT)
    except KjumpError as error:
        return Check(name, False, str(error), remedy)


class _NotRootError(HostError):
    """What was to be looked at shows itself to root only."""


def _only_root(look: Callable[[], str]) -> Callable[[], str]:
    """Return `look` for root, and for others something that raises _NotRootError."""

    def refuse() -> str:
        raise _NotRootError("not checked: only root can")

    return look if os.geteuid() == 0 else refuse


def _privileges() -> Check:
    root = os.geteuid() == 0
    return Check("privileges", root, "root" if root else f"user {os.geteuid()}", _AS_ROOT)


def _architecture() -> Check:
    machine = os.uname().machine
    return Check("architecture", machine == "x86_64", machine, "hibernation works on x86_64 kernels only")


def _kernel_config() -> Check:
    config = procfs.kernel_config()
    remedy = "use a kernel with these options (Debian's own kernels lack KEXEC_JUMP; Ubuntu's and Fedora's have it)"
    if config is None:
        # Not a failure: what matters is asked for directly by the other checks and by the load itself.
        return Check("kernel config", True, "not readable (/proc/config.gz, /boot/config-*): not checked", remedy)
    missing = [f"CONFIG_{name}" for name in _NEEDED if config.get(name) != "y"]
    detail = f"missing {', '.join(missing)}" if missing else "all options are set"
    return Check("kernel config", not missing, detail, remedy)


def _lockdown() -> Check:
    try:
        text = root.at("/sys/kernel/security/lockdown").read_text()
    except OSError:
        return Check("lockdown", True, "not in this kernel", "")
    mode = text.partition("[")[2].partition("]")[0] or "unknown"
    return Check("lockdown", mode == "none", mode, "switch lockdown off (Secure Boot turns it on)")


def _kexec_disabled() -> Check:
    try:
        disabled = root.at("/proc/sys/kernel/kexec_load_disabled").read_text().strip()
    except OSError:
        return Check("kexec_load", False, "the kernel has no kexec", "use a kernel with CONFIG_KEXEC")
    remedy = "reboot without setting kernel.kexec_load_disabled; it cannot be taken back"
    return Check("kexec_load", disabled == "0", "allowed" if disabled == "0" else "disabled by sysctl", remedy)


def _symbols() -> str:
    found = kernel_memory.symbols(("gdt_page", "kexec_image"))
    if len(found) < 2:
        raise HostError("the kernel does not show gdt_page and kexec_image in /proc/kallsyms")
    return "readable"


def _memory_of_drivers() -> str:
    """Refuse RAM that a driver added: the kernel that restores has no such RAM until a driver adds it again.

    virtio_mem's is unplugged when the machine is reset; kmem's (CXL, persistent memory) may be decoded elsewhere.
    """
    found = procfs.ram_of_drivers()
    if found:
        total = sum(r.range.size for r in found)
        raise HostError(
            f"{found[0].range} is {found[0].name}, in all {total >> 20} MiB of drivers' memory: "
            "it need not be there when the machine is switched on"
        )
    return "none"


def _window(size: int) -> str:
    window = window_here(size)
    low = low_memory(procfs.ram())
    return f"{window}, {window.size >> 20} MiB, and low memory {low}"


def window_size_that_fits() -> int:
    """Return the largest of the usual sizes (bytes) for which A has memory, after making room if it must be made.

    Each is larger where B needs more (`more_than_usual`). The smallest when there is no room even for that: `checks`
    then says what is missing.
    """
    more = more_than_usual()
    sizes = [size + more for size in SIZES]
    if has_room(sizes[0]):
        return sizes[0]
    available = procfs.meminfo()["MemAvailable"]
    return next((size for size in sizes if size + _SLACK + _DRIFT <= available), sizes[-1])


def more_than_usual() -> int:
    """Return by how many bytes a window must be larger than usual, for much memory, in many pieces, or many CPUs."""
    memory_end = procfs.meminfo()["MemTotal"] + HIGHEST  # no less: what is not RAM lies below 4 GiB
    lists = memory_to_save(memory_end, procfs.free_blocks())
    cpus = max(0, min(os.cpu_count() or 1, MOST_CPUS) - _USUAL_CPUS)
    more = max(0, lists - _USUAL_LISTS) + cpus * _CPU
    return align_up(more + more // (_SHADOW - 1), ALIGNMENT)


def has_room(size: int) -> bool:
    """Tell whether A has memory for a window of `size` bytes, after making room if it must be made."""
    needed = size + _SLACK + _DRIFT
    if procfs.meminfo()["MemAvailable"] < needed:
        make_room(needed)
    return procfs.meminfo()["MemAvailable"] >= needed


def make_room(needed: int) -> None:
    """Let the kernel give up its caches, and swap out if it can, until `needed` bytes are available, or no more.

    Single pages are all that a load takes, so memory need not be compacted.
    """
    os.sync()
    with contextlib.suppress(OSError):
        root.at("/proc/sys/vm/drop_caches").write_text("3\n")
    now = procfs.meminfo()
    if now["MemAvailable"] < needed <= now["MemAvailable"] + now["SwapFree"]:
        _press(needed)


def _press(size: int) -> None:
    """Take `size` bytes in a process of their own and give them back: the kernel swaps out what they need."""
    pid = os.fork()
    if pid == 0:
        try:
            Path("/proc/self/oom_score_adj").write_text("1000")  # should it come to that, nobody else is killed
            with mmap.mmap(-1, size) as memory:
                for at in range(0, size, PAGE_SIZE):
                    memory[at] = 1
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def give_back_free_memory() -> None:
    """Let go of memory that is free, but that nothing says of: it would be saved.

    The C library keeps what this process has freed: megabytes, where an initramfs was. CPUs keep lists of free pages,
    up to an eighth of memory in all.
    """
    with contextlib.suppress(AttributeError):  # not every C library has that
        libc().malloc_trim(0)
    # An older kernel does not take that value; its lists are short.
    with syscalls.setting(root.at(_LISTS_LIMIT), f"{_LEAST_LISTS}\n") as taken, contextlib.suppress(OSError):
        if taken:
            _shorten_lists_of_cpus()


def _shorten_lists_of_cpus() -> None:
    """Let the kernel see to its statistics, which shortens lists that are longer than their limit.

    By some thousand pages each time, in each zone of memory. Source: Documentation/admin-guide/sysctl/vm.rst
    (percpu_pagelist_high_fraction, stat_refresh); mm/vmstat.c, from 6.7 on.
    """
    before, listed = sys.maxsize, _pages_on_lists()
    while 0 < listed < before:
        for _ in range(_REFRESHES):
            root.at(_STATISTICS).read_text()
        before, listed = listed, _pages_on_lists()


def _pages_on_lists() -> int:
    """Return the pages on the lists of all CPUs, in lists so long that they matter."""
    lines = root.at(_ZONES).read_text().splitlines()
    counts = (line.split()[1] for line in lines if line.lstrip().startswith("count:"))
    return sum(count for count in map(int, counts) if count > _SHORT)


def _free_memory(window_size: int) -> Check:
    values = procfs.meminfo()
    needed = window_size + _SLACK
    available = values["MemAvailable"]
    detail = f"{available >> 20} MiB available, {needed >> 20} MiB needed"
    missing = -(-max(0, needed - available) // MIB)
    limit = int(values["MemTotal"] * loader.current().share_of_ram)
    enough = available >= needed and needed <= limit
    if needed > limit:
        detail += f"; the kernel loads at most {loader.current().share_of_ram:.0%} of RAM ({limit >> 20} MiB)"
    remedy = f"free {missing} MiB (what is locked cannot be swapped out), or take a smaller window with --window-size"
    return Check("free memory", enough, detail, remedy)


def _paging() -> str:
    _, flags = procfs.cpu_facts()
    levels = 5 if "la57" in flags else 4
    return f"{levels} levels, {'1 GiB' if 'pdpe1gb' in flags else '2 MiB'} identity pages"


def _file_systems(accepted: Collection[str]) -> Check:
    """Look for what is mounted for writing and would be destroyed by a resume after a change that nobody notices."""
    found = mounts.risks()
    bad = mounts.unseen(found, accepted)
    if bad:
        detail = f"{mounts.in_words(bad)}: {mounts.CONSEQUENCE}"
        return Check(_FILE_SYSTEMS, False, detail, mounts.remedy(bad))
    detail = mounts.warning(found) or "changes by another system would be noticed"
    return Check(_FILE_SYSTEMS, True, detail, "")


def _target(path: str) -> str:
    with open_for_image(path) as target:
        if isinstance(target, FileTarget):
            target.refuse_if_it_carries_something()
        if target.capacity <= _LEAST_TARGET:
            raise HostError(f"{path} has only {target.capacity} bytes")
        extents = len(target.place.extents)
        where = f", in {extents} extents on {target.place.device}" if extents else ""
        return f"{path}, {target.capacity >> 20} MiB{where}"
