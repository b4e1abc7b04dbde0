"""Preflight: check before the jump whether a hibernation can work, say what to do if not, and make room for it."""

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
"""Bytes that a load takes in addition to the window: kernel and initramfs, also joined, low memory, page lists."""
_DRIFT = 8 * MIB
"""Bytes that the checks themselves may take between the choice of a window and its check."""

_USUAL_LISTS = 16 * MIB
"""Bytes for lists of pages that a window of a usual size has room for: at the end of a save in the lab, 70 MiB of
128 MiB were free."""
_USUAL_CPUS = 8
_CPU = 1 * MIB
"""Bytes that each further CPU takes in the second kernel, an estimate: per-CPU area (380 KiB seen with two CPUs),
kernel threads and their stacks."""
_SHADOW = 12
"""The fraction of a window that its own page list takes in the second kernel is at most 1 / this: 337 bytes for a page
while the list is read, measured."""

_LISTS_LIMIT = Path("/proc/sys/vm/percpu_pagelist_high_fraction")
_LEAST_LISTS = 1_000_000
"""The value of percpu_pagelist_high_fraction: the free-page lists of all CPUs take at most a millionth of memory."""
_STATISTICS = Path("/proc/sys/vm/stat_refresh")
_ZONES = Path("/proc/zoneinfo")
_REFRESHES = 8
_SHORT = 512
"""A CPU's list of free pages with no more pages than this is not shortened."""

_AS_ROOT = "run as root"
_FILE_SYSTEMS = "file systems"
_LEAST_TARGET = 4 << 20
"""The least capacity of a target in bytes; every image of a Linux system is larger."""


@dataclass(frozen=True)
class Check:
    """The result of one check: its `name`, whether it is `ok`, what was found (`detail`), and the `remedy`."""

    name: str
    ok: bool
    detail: str
    remedy: str


def checks(*, target: str | None, window_size: int | None, accept_unseen: Collection[str] | None = ()) -> list[Check]:
    """Check everything that a hibernation needs; a failed check is returned, not raised.

    `window_size` is in bytes; None when the second kernel is resident already and needs no window. Without `target` no
    target is checked. Types of file systems in `accept_unseen` are accepted although a change of them would not be
    noticed; with None (for what is not resumed) mounted file systems are not checked.
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
    """The check needs root."""


def _only_root(look: Callable[[], str]) -> Callable[[], str]:
    """Return `look` if this process runs as root, else a function that raises _NotRootError."""

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
        # Not a failure: the other checks and the load itself find out what matters.
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
    """Raise HostError for RAM that a driver added: a restoring kernel does not have it until its driver adds it again.

    virtio_mem unplugs its RAM when the machine is reset; kmem's RAM (CXL, persistent memory) may get other addresses.
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
    """Return the largest window size in bytes for which this system has memory, after making room if necessary.

    The sizes are the usual ones (`kexec.window.SIZES`), each with `more_than_usual` added. If none fits the smallest is
    returned, for which `checks` then says what is missing.
    """
    more = more_than_usual()
    sizes = [size + more for size in SIZES]
    if has_room(sizes[0]):
        return sizes[0]
    available = procfs.meminfo()["MemAvailable"]
    return next((size for size in sizes if size + _SLACK + _DRIFT <= available), sizes[-1])


def more_than_usual() -> int:
    """Return the bytes by which a window must be larger than usual, for much or fragmented RAM, or many CPUs."""
    memory_end = procfs.meminfo()["MemTotal"] + HIGHEST  # an upper bound: the holes in RAM lie below 4 GiB
    lists = memory_to_save(memory_end, procfs.free_blocks())
    cpus = max(0, min(os.cpu_count() or 1, MOST_CPUS) - _USUAL_CPUS)
    more = max(0, lists - _USUAL_LISTS) + cpus * _CPU
    return align_up(more + more // (_SHADOW - 1), ALIGNMENT)


def has_room(size: int) -> bool:
    """Tell whether this system has memory for a window of `size` bytes, after making room if necessary."""
    needed = size + _SLACK + _DRIFT
    if procfs.meminfo()["MemAvailable"] < needed:
        make_room(needed)
    return procfs.meminfo()["MemAvailable"] >= needed


def make_room(needed: int) -> None:
    """Let the kernel drop its caches, and swap out if that helps, so that `needed` bytes become available.

    Memory need not be compacted, because a load allocates single pages.
    """
    os.sync()
    with contextlib.suppress(OSError):
        root.at("/proc/sys/vm/drop_caches").write_text("3\n")
    now = procfs.meminfo()
    if now["MemAvailable"] < needed <= now["MemAvailable"] + now["SwapFree"]:
        _press(needed)


def _press(size: int) -> None:
    """Allocate `size` bytes in a child process that then exits, so that the kernel swaps out as much as is missing."""
    pid = os.fork()
    if pid == 0:
        try:
            Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process is killed
            with mmap.mmap(-1, size) as memory:
                for at in range(0, size, PAGE_SIZE):
                    memory[at] = 1
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def give_back_free_memory() -> None:
    """Return memory to the kernel's allocator that is unused but not marked as free, and so would be saved.

    The C library keeps megabytes that this process has freed, where an initramfs was. The CPUs' lists of free pages
    hold up to an eighth of memory in all.
    """
    with contextlib.suppress(AttributeError):  # only glibc has malloc_trim
        libc().malloc_trim(0)
    # A kernel that refuses this value has short lists.
    with syscalls.setting(root.at(_LISTS_LIMIT), f"{_LEAST_LISTS}\n") as taken, contextlib.suppress(OSError):
        if taken:
            _shorten_lists_of_cpus()


def _shorten_lists_of_cpus() -> None:
    """Let the kernel refresh its memory statistics, by which it shortens CPUs' lists that are longer than their limit.

    Each refresh takes some thousand pages off the lists of each zone. Source: Documentation/admin-guide/sysctl/vm.rst
    (percpu_pagelist_high_fraction, stat_refresh); mm/vmstat.c, from 6.7 on.
    """
    before, listed = sys.maxsize, _pages_on_lists()
    while 0 < listed < before:
        for _ in range(_REFRESHES):
            root.at(_STATISTICS).read_text()
        before, listed = listed, _pages_on_lists()


def _pages_on_lists() -> int:
    """Return the number of pages on the CPUs' lists of free pages that have more than _SHORT pages."""
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
