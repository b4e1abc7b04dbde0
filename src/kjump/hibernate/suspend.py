"""The first kernel's side of a hibernation or snapshot: prepare, jump to the second kernel, return the result."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from kjump.errors import HostError, JumpError
from kjump.formats import cmdline, cpio
from kjump.formats.record import JsonObject
from kjump.gates import Gate
from kjump.hibernate import DEFAULT_WATCHDOG, after_jump, post_mortem, preflight
from kjump.hibernate.away import Away, Tell
from kjump.hibernate.clock import Moment, Pace
from kjump.hibernate.hooks import archive
from kjump.hibernate.jobs import Assignment, LookJob, SaveJob, Then
from kjump.hibernate.report import Report
from kjump.host import kernel_memory, procfs, root
from kjump.image import DEFAULT_LEVEL
from kjump.image.facts import Hook, Kind, SystemFacts
from kjump.initramfs.contents import with_job, without_kernel
from kjump.kexec import loader, mailbox, second_kernel
from kjump.kexec.linux import LinuxPeer, Surroundings, elf_headers_size, read_kernel, read_once
from kjump.kexec.mailbox import Outcome
from kjump.kexec.placement import window_here
from kjump.kexec.plan import ARCH_X86_64, Plan
from kjump.kexec.window import DEFAULT_SIZE, WindowLayout, lay_out
from kjump.ranges import Range, RangeSet
from kjump.target import disks, filesystems, identify, mounts
from kjump.target.device import Target
from kjump.target.file import FileTarget, open_for_image
from kjump.target.states import Departure, Mounted

_LEAST_TIME = 300
_SLOWEST = 20_000_000
"""The least rate of a save, in bytes of RAM per second: a save that takes longer is considered hung."""


@dataclass(frozen=True)
class TripRequest:
    """A request for a trip to a second kernel: the target (a device or a file), the second kernel and its initramfs.

    `window` is chosen when None; `window_size` is in bytes, `level` a zstd level (0: chosen by measuring, see
    `image.compression`). `force` overwrites a device that carries a file system or another signature; a file must have
    been made as a target in any case. `append` is added to the second kernel's command line. `time_limit` is how long
    the job may take, in seconds (0: computed from the size of RAM); `watchdog` the timeout of the machine's watchdog
    meanwhile, in seconds. `kind` says what the image is for; after anything but a hibernation the second kernel jumps
    back. With `dump_level` the image is a dump without the pages that `kjump dump --dump-level` leaves out. `hook` runs
    in the second kernel before the save. With `look` nothing is saved and there is no target: the second kernel runs
    `kjump peer` with these arguments on the first kernel's memory. `accept_unseen` names types
    of file systems that are accepted although another system's change to them would not be noticed; a resume or
    roll-back would then destroy them. `fault` provokes a failure in the second kernel, for tests (see
    `init.jobs.faults`).
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
    look: tuple[str, ...] = ()
    accept_unseen: tuple[str, ...] = ()
    fault: str = ""


@dataclass
class Hibernation:
    """The result of a hibernation, for messages and as JSON: sizes in bytes, times in seconds."""

    resumed: bool
    window_bytes: int
    reason: str = ""
    phases: dict[str, float] = field(default_factory=dict)
    report: Report = field(default_factory=Report)

    def to_json(self) -> JsonObject:
        """Return it as one JSON object."""
        return vars(self) | {"report": self.report.to_json()}


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
    file_systems: tuple[Mounted, ...]


@dataclass(frozen=True)
class Trip:
    """The result of a jump to a second kernel and back: outcome and report, the target's cookie, and the times.

    `prepare_seconds` is the time before the jump. `left` has the clocks just before the jump, `back` the time stamp
    counter just after it; `pace` converts its values to seconds. `away` is the duration by the wall clock in seconds,
    `clock_step` the seconds by which that clock was set, `again_seconds` the time until a second kernel stood by again.
    """

    outcome: Outcome
    report: Report
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
    request: TripRequest, *, tell: Tell = lambda _: None, go: Callable[[TripRequest, Tell], Trip] | None = None
) -> Hibernation:
    """Save this system to `request.target` and switch off; returns when it is resumed, or the second kernel has failed.

    `tell` gets one line for each step; `go` makes the trip (default: `travel`, which boots a second kernel). HostError,
    PlanError or TargetError before the jump; this system is unchanged then.
    """
    trip = (go or travel)(request, tell)
    return Hibernation(
        resumed=trip.outcome == Outcome.RESUMED,
        window_bytes=trip.window_bytes,
        reason=post_mortem.reason(trip.outcome, trip.report),
        phases={
            "prepare": round(trip.prepare_seconds, 3),
            "away": round(trip.away, 3),
            "again": round(trip.again_seconds, 3),
        },
        report=trip.report,
    )


def travel(request: TripRequest, tell: Tell) -> Trip:
    """Boot a second kernel for `request` and jump to it; returns when it jumps back, or its image was restored."""
    journey = Journey()
    claimed = contextlib.nullcontext() if request.look else claim(request)
    with kernel_memory.Kcore() as kcore, claimed as target:
        prepared = _prepare(request, kcore, target, tell)
        box, window_bytes = prepared.box, prepared.layout.window.size
        cookie, file_systems = prepared.cookie, prepared.file_systems
        loader.current().load(prepared.plan)
        del prepared  # the kernel has its own copy; this one would only make the image larger
        try:
            head = loader.current().image_list_head(kcore)
            tell("jumping")
            departure = journey.depart(file_systems)
            box.post(head, departure.to_json() if mailbox.fits(departure.to_json()) else {})
            with Away(target, request.kind, tell) as away:
                loader.current().jump()
                away.landed()
                away.came_back(box.read)
            if away.outcome == Outcome.PANIC:
                away.report = post_mortem.with_log(kcore, away.report)
        finally:
            # The loaded image is useless after the jump: its source pages hold what the other kernel left there.
            loader.current().unload(ARCH_X86_64)
    box.wipe()
    trip = journey.arrive(away, window_bytes=window_bytes, cookie=cookie)
    tell("back")
    return trip


class Journey:
    """One trip to a second kernel and back: the steps that a booted and a resident second kernel have in common."""

    def __init__(self) -> None:
        """Begin to measure time."""
        self._begun, self._pace = time.monotonic(), Pace()
        self._ready = self._begun

    def depart(self, items: Iterable[Mounted]) -> Departure:
        """Take the last steps before the jump (`take_leave`); return the state of the file systems `items`."""
        departure = take_leave(items, self._pace)
        self._ready = time.monotonic()
        return departure

    def arrive(self, away: Away, *, window_bytes: int, cookie: bytes) -> Trip:
        """Reseed the generator and set the wall clock (see `after_jump`), and return the result of the trip."""
        step = after_jump.mend(away.report, away.left, self._pace)
        return Trip(
            outcome=away.outcome,
            report=replace(away.report, seed=b"", clock=None),  # the seed is a secret
            window_bytes=window_bytes,
            cookie=cookie,
            prepare_seconds=self._ready - self._begun,
            pace=self._pace,
            left=away.left,
            back=away.back,
            away=time.time() - away.left.wall,
            clock_step=step,
        )


def take_leave(items: Iterable[Mounted], pace: Pace) -> Departure:
    """Free memory, write out all file systems, and return the state of the file systems `items` after that."""
    preflight.give_back_free_memory()
    disks.current().write_out()
    pace.measure()
    return filesystems.departure(items)


def _prepare(request: TripRequest, kcore: kernel_memory.Kcore, target: Target | None, tell: Tell) -> _Prepared:
    """Lay out the second kernel, arm the target, and return the Plan with the job in the initrd."""
    note = kcore.vmcoreinfo_note()
    window = request.window or window_here(request.window_size)
    around, box = _surroundings(kcore, note, window)
    headers_size = elf_headers_size(around.ram, note)
    layout = lay_out(window, elf_headers_size=headers_size, memory_end=around.memory_end, huge=around.huge)
    tell(f"window {window}, {window.size >> 20} MiB")
    kernel, initrd = read_kernel(request.kernel), without_kernel(read_once(request.initrd))
    if request.hook:
        initrd = cpio.join([initrd, archive(request.hook)])
    second_kernel.require_room(kernel, initrd, layout)
    machine = second_kernel.second_command_line(kernel, "second", kcore)
    line = cmdline.join([machine, layout.way_back.option, request.append])
    job = LookJob(request.look) if target is None else save_job(request, kcore, around, layout, target, tell)
    assignment = Assignment(job, layout.gate, time_limit(request, around), request.watchdog)
    initrd = with_job(initrd, assignment.encode())  # the same name: frees the other copy, which is large
    second = LinuxPeer(kernel, initrd, line, layout)
    cookie, file_systems = (job.cookie, job.file_systems) if isinstance(job, SaveJob) else (b"", ())
    return _Prepared(box, second.plan(around, preserve=True), layout, cookie, file_systems)


def time_limit(request: TripRequest, around: Surroundings) -> float:
    """Return how long, in seconds, the job of a second kernel may take."""
    limit = request.time_limit or _LEAST_TIME + around.ram.size / _SLOWEST
    return limit + (request.hook.timeout if request.hook else 0)


def save_job(
    request: TripRequest,
    kcore: kernel_memory.Kcore,
    around: Surroundings,
    layout: WindowLayout,
    target: Target,
    tell: Tell,
) -> SaveJob:
    """Arm `target`, and return the job of a second kernel that lives in `layout`.

    TargetError when a file system is mounted whose change would not be noticed; of no matter for a dump.
    """
    if request.kind is not Kind.DUMP and (warning := mounts.refuse_unseen(request.accept_unseen)):
        tell(warning)
    options = " ".join(identify.boot_options(target.place))
    if request.kind is Kind.HIBERNATION and not identify.leads_to(cmdline.parse(procfs.command_line()), target.place):
        tell(f"this boot did not have `{options}`: the next one needs it to find the image")
    cookie = target.arm().cookie
    target.check_on_device()
    return SaveJob(
        kind=request.kind,
        then=Then.POWER_OFF if request.kind is Kind.HIBERNATION else Then.BACK,
        target=target.place,
        cookie=cookie,
        system=_system_facts(kcore, around, layout),
        file_systems=mounts.mounted(),
        ram=tuple(around.ram),
        free_pages=kernel_memory.free_page_policy(kcore),
        level=request.level,
        dump_level=request.dump_level,
        hook=request.hook,
        fault=request.fault,
    )


def _surroundings(kcore: kernel_memory.Kcore, note: bytes, window: Range) -> tuple[Surroundings, mailbox.Mailbox]:
    """Return what the second kernel is told of the machine, and a mailbox in memory that stays in place."""
    around = second_kernel.describe_machine(Gate(), vmcoreinfo_note=note)
    box = mailbox.Mailbox(avoid=RangeSet([window, around.low]))
    gdt, limit = kernel_memory.boot_cpu_gdt(kcore)
    gate = Gate(mailbox=box.address, cookie=box.cookie, a_gdt_base=gdt, a_gdt_limit=limit)
    return replace(around, gate=gate), box


def _system_facts(kcore: kernel_memory.Kcore, around: Surroundings, layout: WindowLayout) -> SystemFacts:
    """Return the facts of this system and its machine that a restoring kernel needs (see docs/image-format.md)."""
    model, flags = procfs.cpu_facts()
    return SystemFacts(
        release=procfs.release(),
        cpu_model=model,
        cpu_flags=flags,
        la57="la57" in flags,
        memory_map=tuple(around.memory_map),
        window=layout.window,
        low=around.low,
        gate_address=layout.gate,
        elf_headers_size=layout.elf_headers_size,
        loops_per_jiffy=kernel_memory.loops_per_jiffy(kcore),
    )


def claim(request: TripRequest) -> Target:
    """Open the target for exclusive use; TargetError when it must not be overwritten."""
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
    """Raise JumpError with the reason unless the system was resumed from the image."""
    if not result.resumed:
        raise JumpError(f"not hibernated: {result.reason}; this system went on unharmed")
