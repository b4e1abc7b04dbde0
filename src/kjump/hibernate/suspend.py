"""A's side of a hibernation or a snapshot: prepare, jump to B, and say what came of it when A is back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kjump.errors import HostError, JumpError
from kjump.formats import cmdline, cpio
from kjump.gates import Gate
from kjump.hibernate import DEFAULT_WATCHDOG, after_jump, post_mortem, preflight
from kjump.hibernate.away import Away, Tell
from kjump.hibernate.clock import Moment, Pace
from kjump.hibernate.hooks import TIMEOUT, Hook
from kjump.host import kernel_memory, procfs, root
from kjump.image import DEFAULT_LEVEL
from kjump.image.layout import Kind
from kjump.initramfs.contents import with_job, without_kernel
from kjump.kexec import loader, mailbox, second_kernel
from kjump.kexec.linux import LinuxPeer, Surroundings, elf_headers_size, read_kernel, read_once
from kjump.kexec.placement import window_here
from kjump.kexec.plan import ARCH_X86_64, Plan
from kjump.kexec.window import DEFAULT_SIZE, WindowLayout, lay_out
from kjump.ranges import Range, RangeSet
from kjump.target import disks, filesystems
from kjump.target.device import Target
from kjump.target.file import FileTarget, open_for_image

_LEAST_TIME = 300
_SLOWEST = 20_000_000
"""Bytes of RAM that B should save in a second, however slow the target: what is slower hangs."""


@dataclass(frozen=True)
class Request:
    """What to hibernate to, and with what: the target (a device or a file), the second kernel and its initramfs.

    `window` is found when None; `window_size` and `level` are bytes and a zstd level
    (0: found by measuring, see `image.compression`). `force` overwrites what a device carries, by its signature; a file
    must be a target in any case. `append` is added to the second kernel's command line. `time_limit` is how long B may
    take, in seconds (0: by the size of RAM); `watchdog` the timeout, in seconds, of the machine's watchdog
    while B works.
    `kind` says what the image is for; for all but a hibernation B comes back. With `dump_level` it is a dump that
    leaves out what `kjump dump --dump-level` does. `hook` runs in B first, for `hook_timeout` seconds at most. With
    `look` nothing is saved, and the target is none: B looks at A as `kjump peer` with these words does.
    `fault` provokes a failure in B, for tests (see `init.jobs.faults`).
    """

    target: str
    kernel: Path
    initrd: Path
    window: Range | None = None
    window_size: int = DEFAULT_SIZE
    level: int = DEFAULT_LEVEL
    force: bool = False
    append: str = ""
    time_limit: float = 0
    watchdog: int = DEFAULT_WATCHDOG
    kind: Kind = Kind.HIBERNATION
    dump_level: int | None = None
    hook: Hook | None = None
    hook_timeout: float = TIMEOUT
    look: tuple[str, ...] = ()
    fault: str = ""


@dataclass
class Hibernation:
    """What came of a hibernation, for people and as JSON: sizes in bytes, times in seconds."""

    resumed: bool
    window_bytes: int
    reason: str = ""
    phases: dict[str, float] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)


def default_kernel() -> Path:
    """Return the bzImage of the running kernel in /boot; HostError when there is none."""
    for path in (root.at(f"/boot/vmlinuz-{procfs.release()}"), root.at("/boot/vmlinuz")):
        if path.exists():
            return path
    raise HostError(f"no /boot/vmlinuz-{procfs.release()}: name the second kernel with --kernel")


def default_initrd() -> Path:
    """Return kjump's initramfs in /boot; HostError when there is none."""
    for path in (root.at(f"/boot/kjump-initramfs-{procfs.release()}.img"), root.at("/boot/kjump-initramfs.img")):
        if path.exists():
            return path
    raise HostError("no /boot/kjump-initramfs.img: build it with `kjump initramfs build`, or name one with --initrd")


@dataclass(frozen=True)
class _Prepared:
    box: mailbox.Mailbox
    plan: Plan
    layout: WindowLayout
    cookie: bytes
    file_systems: list[dict[str, Any]]


@dataclass(frozen=True)
class Trip:
    """A way to B and back: the outcome (mailbox.OUTCOME_*) and report, the target's cookie, and the times.

    `prepare_seconds` is what came before the jump; `left` and `back` are the time stamp counter just before and just
    after it, in units of `pace`; `away` is by the wall clock. `clock_step` is how far that clock had to be set,
    `again_seconds` how long it took until a second kernel stood by again.
    """

    outcome: int
    report: dict[str, Any]
    window_bytes: int
    cookie: bytes
    prepare_seconds: float
    pace: Pace
    left: Moment
    back: int
    away: float
    clock_step: float
    again_seconds: float = 0


def hibernate(
    request: Request, *, tell: Tell = lambda _: None, go: Callable[[Request, Tell], Trip] | None = None
) -> Hibernation:
    """Save this system to `request.target` and switch off; returns when it has been resumed, or when B failed.

    `tell` gets one line for each step; `go` goes to B and comes back (default: `travel`, which boots one). HostError,
    PlanError or TargetError before the jump, nothing lost then.
    """
    trip = (go or travel)(request, tell)
    return Hibernation(
        resumed=trip.outcome == mailbox.OUTCOME_RESUMED,
        window_bytes=trip.window_bytes,
        reason=post_mortem.reason(trip.outcome, trip.report),
        phases={
            "prepare": round(trip.prepare_seconds, 3),
            "away": round(trip.away, 3),
            "again": round(trip.again_seconds, 3),
        },
        report=trip.report,
    )


def travel(request: Request, tell: Tell) -> Trip:
    """Go to B with `request`, and return when A is back: from B, or from an image that B made."""
    begun, pace = time.monotonic(), Pace()
    claimed = contextlib.nullcontext() if request.look else claim(request)
    with kernel_memory.Kcore() as kcore, claimed as target:
        prepared = _prepare(request, kcore, target, tell)
        box, window_bytes = prepared.box, prepared.layout.window.size
        cookie, file_systems = prepared.cookie, prepared.file_systems
        loader.current().load(prepared.plan)
        del prepared  # the kernel has its copy of B; what is still here would be saved with the rest of A
        try:
            head = loader.current().image_list_head(kcore)
            ready = time.monotonic()
            tell("jumping")
            box.post(head, take_leave(file_systems, pace))
            with Away(target, request.kind, tell) as away:
                loader.current().jump()
                away.landed()
                away.came_back(*box.read())
            if away.outcome == mailbox.OUTCOME_PANIC:
                away.report |= post_mortem.last_words(kcore, away.report)
        finally:
            # What is loaded is worthless now: its pages hold what the other side left behind.
            loader.current().unload(ARCH_X86_64)
    box.wipe()
    trip = arrive(away, pace, window_bytes=window_bytes, cookie=cookie, prepare_seconds=ready - begun)
    tell("back")
    return trip


def arrive(away: Away, pace: Pace, *, window_bytes: int, cookie: bytes, prepare_seconds: float) -> Trip:
    """Set what this system must set when it is back (see `arrival`), and return what came of the trip."""
    step = after_jump.settle(away.report, away.left, pace)
    return Trip(
        outcome=away.outcome,
        report=away.report,
        window_bytes=window_bytes,
        cookie=cookie,
        prepare_seconds=prepare_seconds,
        pace=pace,
        left=away.left,
        back=away.back,
        away=time.time() - away.left.wall,
        clock_step=step,
    )


def take_leave(items: list[dict[str, Any]], pace: Pace) -> dict[str, Any]:
    """Do what A does last before it is left; return what can be said of its file systems `items` only then.

    That is nothing when a mailbox cannot hold it.
    """
    preflight.give_back_free_memory()
    disks.current().write_out()
    pace.settle()
    words = {"lineage": filesystems.lineage(), "written": filesystems.written(items)}
    return words if mailbox.fits(words) else {}


def _prepare(request: Request, kcore: kernel_memory.Kcore, target: Target | None, tell: Tell) -> _Prepared:
    """Decide everything about B, arm the target, and return the Plan with B's job in its initrd."""
    note = kcore.vmcoreinfo_note()
    window = request.window or window_here(request.window_size)
    around, box = _surroundings(kcore, note, window)
    headers_size = elf_headers_size(around.ram, note)
    layout = lay_out(window, elf_headers_size=headers_size, memory_end=around.memory_end, huge=around.huge)
    tell(f"window {window}, {window.size >> 20} MiB")
    kernel, initrd = read_kernel(request.kernel), without_kernel(read_once(request.initrd))
    if request.hook:
        initrd = cpio.join([initrd, request.hook.packed()])
    second_kernel.require_room(kernel, initrd, layout)
    machine = second_kernel.second_command_line(kernel, "second", kcore)
    line = cmdline.join([machine, layout.way_back.option, request.append])
    job = _common(request, kcore, around, layout) | {"gate": layout.gate}
    if target is None:
        job |= {"do": "peer", "argv": request.look}
    else:
        job |= {"do": "save"} | _armed(request, target, tell)
    initrd = with_job(initrd, job)  # and the other is gone: it is large
    second = LinuxPeer(kernel, initrd, line, layout)
    cookie = bytes.fromhex(job.get("cookie", ""))
    return _Prepared(box, second.plan(around, preserve=True), layout, cookie, job["file_systems"])


def save_job(
    request: Request,
    kcore: kernel_memory.Kcore,
    around: Surroundings,
    layout: WindowLayout,
    target: Target,
    tell: Tell,
) -> dict[str, Any]:
    """Arm `target`, and return the words of the job of a second kernel that lives in `layout`."""
    return _common(request, kcore, around, layout) | _armed(request, target, tell)


def _common(request: Request, kcore: kernel_memory.Kcore, around: Surroundings, layout: WindowLayout) -> dict[str, Any]:
    """Return what every job says of A, and how long it may take."""
    facts = _facts(around, layout) | {"loops_per_jiffy": kernel_memory.loops_per_jiffy(kcore), "kind": request.kind}
    time_limit = request.time_limit or _LEAST_TIME + around.ram.size / _SLOWEST
    if request.hook:
        facts |= {"hook": request.hook.as_json(), "hook_timeout": request.hook_timeout}
        time_limit += request.hook_timeout
    return {
        "ram": [(r.start, r.end) for r in around.ram],
        "facts": facts,
        "file_systems": filesystems.mounted(),
        "free_pages": kernel_memory.free_page_policy(kcore),
        "time_limit": time_limit,
        "watchdog": request.watchdog,
    }


def _armed(request: Request, target: Target, tell: Tell) -> dict[str, Any]:
    """Arm the target, and return what a job says that saves to it."""
    options = " ".join(target.place.boot_options())
    if request.kind is Kind.HIBERNATION and not cmdline.parse(procfs.command_line()).has_all(cmdline.parse(options)):
        tell(f"this boot did not have `{options}`: the next one needs it to find the image")
    cookie = target.arm().cookie
    target.check_on_device()
    return {
        "then": "power-off" if request.kind is Kind.HIBERNATION else "back",
        "target": target.place.as_json(),
        "cookie": cookie.hex(),
        "level": request.level,
        "dump_level": request.dump_level,
        "fault": request.fault,
    }


def _surroundings(kcore: kernel_memory.Kcore, note: bytes, window: Range) -> tuple[Surroundings, mailbox.Mailbox]:
    """Return what B is told of the machine and of the way back, and the mailbox, outside what is swapped out."""
    around = second_kernel.describe_machine(Gate(), vmcoreinfo_note=note)
    box = mailbox.Mailbox(avoid=RangeSet([window, around.low]))
    gdt, limit = kernel_memory.boot_cpu_gdt(kcore)
    gate = Gate(mailbox=box.address, cookie=box.cookie, a_gdt_base=gdt, a_gdt_limit=limit)
    return replace(around, gate=gate), box


def _facts(around: Surroundings, layout: WindowLayout) -> dict[str, Any]:
    """Return what the image must say of A and its machine, for those who restore it (docs/image-format.md)."""
    model, flags = procfs.cpu_facts()
    return {
        "release": procfs.release(),
        "cpu_model": model,
        "cpu_flags": sorted(flags),
        "la57": "la57" in flags,
        "memory_map": [(e.range.start, e.range.end, e.type) for e in around.memory_map],
        "window": (layout.window.start, layout.window.end),
        "low": (around.low.start, around.low.end),
        "gate_address": layout.gate,
        "elf_headers_size": layout.elf_headers_size,
    }


def claim(request: Request) -> Target:
    """Open the target so that nobody else gets at it before the jump; TargetError when it must not be overwritten."""
    target = open_for_image(request.target)
    try:
        target.hold()
        if not request.force or isinstance(target, FileTarget):
            target.refuse_if_it_carries_something()
    except BaseException:
        target.close()
        raise
    return target


def raise_unless_resumed(result: Hibernation) -> None:
    """Raise JumpError with the reason when B came back instead of the resume."""
    if not result.resumed:
        raise JumpError(f"not hibernated: {result.reason}; this system went on unharmed")
