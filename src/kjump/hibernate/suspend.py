"""A's side of a hibernation or a snapshot: prepare, jump to B, and say what came of it when A is back."""

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
"""Bytes of RAM that B should save in a second, however slow the target: what is slower hangs."""


@dataclass(frozen=True)
class TripRequest:
    """What to hibernate to, and with what: the target (a device or a file), the second kernel and its initramfs.

    `window` is found when None; `window_size` and `level` are bytes and a zstd level (0: found by measuring, see
    `image.compression`). `force` overwrites what a device carries, by its signature; a file must be a target in any
    case. `append` is added to the second kernel's command line. `time_limit` is how long B may take, in seconds (0:
    by the size of RAM); `watchdog` the timeout, in seconds, of the machine's watchdog while B works. `kind` says what
    the image is for; for all but a hibernation B comes back. With `dump_level` it is a dump that leaves out what
    `kjump dump --dump-level` does. `hook` runs in B first. With `look` nothing is saved, and the target is none: B
    looks at A as `kjump peer` with these words does. `accept_unseen` names types of file systems that are taken
    although another system's change to them would not be noticed, and a resume or roll-back would then destroy them.
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
    look: tuple[str, ...] = ()
    accept_unseen: tuple[str, ...] = ()
    fault: str = ""


@dataclass
class Hibernation:
    """What came of a hibernation, for people and as JSON: sizes in bytes, times in seconds."""

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
    """A way to B and back: the outcome and report, the target's cookie, and the times.

    `prepare_seconds` is what came before the jump; `left` and `back` are the time stamp counter just before and just
    after it, in units of `pace`; `away` is by the wall clock. `clock_step` is how far that clock had to be set,
    `again_seconds` how long it took until a second kernel stood by again.
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
    """Save this system to `request.target` and switch off; returns when it has been resumed, or when B failed.

    `tell` gets one line for each step; `go` goes to B and comes back (default: `travel`, which boots one). HostError,
    PlanError or TargetError before the jump, nothing lost then.
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
    """Go to B with `request`, and return when A is back: from B, or from an image that B made."""
    journey = Journey()
    claimed = contextlib.nullcontext() if request.look else claim(request)
    with kernel_memory.Kcore() as kcore, claimed as target:
        prepared = _prepare(request, kcore, target, tell)
        box, window_bytes = prepared.box, prepared.layout.window.size
        cookie, file_systems = prepared.cookie, prepared.file_systems
        loader.current().load(prepared.plan)
        del prepared  # the kernel has its copy of B; what is still here would be saved with the rest of A
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
            # What is loaded is worthless now: its pages hold what the other side left behind.
            loader.current().unload(ARCH_X86_64)
    box.wipe()
    trip = journey.arrive(away, window_bytes=window_bytes, cookie=cookie)
    tell("back")
    return trip


class Journey:
    """One way to a second kernel and back: what is the same whoever that is and however it was started."""

    def __init__(self) -> None:
        """Begin: the clocks run."""
        self._begun, self._pace = time.monotonic(), Pace()
        self._ready = self._begun

    def depart(self, items: Iterable[Mounted]) -> Departure:
        """Do what this system does last before it is left; return what it says of its file systems `items`."""
        departure = take_leave(items, self._pace)
        self._ready = time.monotonic()
        return departure

    def arrive(self, away: Away, *, window_bytes: int, cookie: bytes) -> Trip:
        """Set what this system must set when it is back (see `after_jump`), and return what came of the trip."""
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
    """Do what A does last before it is left; return what can be said of its file systems `items` only then."""
    preflight.give_back_free_memory()
    disks.current().write_out()
    pace.measure()
    return filesystems.departure(items)


def _prepare(request: TripRequest, kcore: kernel_memory.Kcore, target: Target | None, tell: Tell) -> _Prepared:
    """Decide everything about B, arm the target, and return the Plan with B's job in its initrd."""
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
    initrd = with_job(initrd, assignment.encode())  # and the other is gone: it is large
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
    """Return what B is told of the machine and of the way back, and the mailbox, outside what is swapped out."""
    around = second_kernel.describe_machine(Gate(), vmcoreinfo_note=note)
    box = mailbox.Mailbox(avoid=RangeSet([window, around.low]))
    gdt, limit = kernel_memory.boot_cpu_gdt(kcore)
    gate = Gate(mailbox=box.address, cookie=box.cookie, a_gdt_base=gdt, a_gdt_limit=limit)
    return replace(around, gate=gate), box


def _system_facts(kcore: kernel_memory.Kcore, around: Surroundings, layout: WindowLayout) -> SystemFacts:
    """Return what the image must say of A and its machine, for those who restore it (docs/image-format.md)."""
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
