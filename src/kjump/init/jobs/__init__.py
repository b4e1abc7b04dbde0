"""The jobs of a second kernel: each takes its `Work` and the job, and returns what A finds in the report.

A job that raises brings A back with the reason; a job that switches the machine off does not return.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace

from kjump import _core
from kjump.errors import HostError, UsageError
from kjump.formats.superblock import Saved
from kjump.gates import Gate
from kjump.hibernate.after_jump import fresh_seed
from kjump.hibernate.hooks import HOOK, TIMEOUT, environment
from kjump.hibernate.jobs import CommandJob, Job, LookJob, NoJob, RestoreJob, SaveJob, ShellJob, Then
from kjump.hibernate.report import Report, Stamps
from kjump.image.facts import ImageFacts
from kjump.image.save import Parked, open_parked, save
from kjump.init import run_program
from kjump.init.console import ProgressBar
from kjump.init.jobs.faults import Fault
from kjump.init.system import Role
from kjump.init.unfinished import Unfinished, unfinished
from kjump.init.watchdog import Guard
from kjump.kexec import loader, mailbox
from kjump.kexec.kimage import kept_head
from kjump.ranges import RangeSet
from kjump.target import filesystems
from kjump.target.device import find_target
from kjump.target.states import Departure

_TARGET_TIMEOUT = 5.0
_SPARE = 300
"""Bytes of a report that are left for what the role adds to it."""


@dataclass(frozen=True)
class Work:
    """What a job is given beside itself: its role, the gate, the head of A's indirection list.

    `guard` brings A back when the job takes too long; a job disarms it before what must not be undone. `message` is
    bytes that A sent along. `departure` is what A said at the jump, for a job that was given before.
    """

    role: Role
    gate: Gate
    head: int
    guard: Guard
    message: bytes = b""
    departure: Departure | None = None


@dataclass(frozen=True)
class Done:
    """What came of a job: a report, and bytes that a resident peer sends back."""

    report: Report = field(default_factory=Report)
    message: bytes = b""


def do(work: Work, job: Job) -> Done:
    """Do the `job`; raises what kept it from being done."""
    match job:
        case SaveJob():
            return save_job(work, job)
        case LookJob():
            return look_job(job)
        case NoJob():
            return none_job(work)
        case CommandJob():
            return command_job(work, job)
        case ShellJob():
            return shell_job(work)
        case RestoreJob():
            raise UsageError("a second kernel restores nothing: that is for a restorer")


def save_job(work: Work, job: SaveJob) -> Done:
    """Save A to the target; then switch the machine off, or return what was saved, and when."""
    role = work.role
    begun = _core.time_stamp()
    if HOOK.exists():
        role.console.line("kjump: the hook puts file systems aside")
        timeout = job.hook.timeout if job.hook else TIMEOUT
        run_program.require([str(HOOK), "save"], environment(), timeout=timeout, what="the hook")
    hooked = _core.time_stamp()
    parked = open_parked(work.head)
    target = find_target(job.cookie, job.target, timeout=_TARGET_TIMEOUT)
    with unfinished(target, work.guard) as made:
        result = _save(work, job, parked, made)
        role.status.send("saved", **result.to_json())
        if job.then is Then.BACK:
            stamps = Stamps(work.gate.tsc_in, begun, hooked, _core.time_stamp())
            report = Report(saved=result, stamps=stamps, seed=fresh_seed())
            made.keep()
            return Done(report)
        role.console.line(
            f"kjump: the first system is saved ({result.image_bytes / 1e6:.1f} MB on the target); switching off"
        )
        if not work.guard.disarm():
            raise HostError("the time limit struck when the image was complete")
        loader.current().power_off()
        raise AssertionError("the machine went on after it was switched off")


def _save(work: Work, job: SaveJob, parked: Parked, made: Unfinished) -> Saved:
    work.role.status.send("save-begins")
    facts = ImageFacts(
        kind=job.kind,
        system=job.system,
        gate=work.gate,
        kept_head=kept_head(parked.raw.read, work.gate.a_entry, work.head),
        saved_at=time.time(),
        file_systems=filesystems.with_states(job.file_systems),
        departure=job.departure or work.departure,
        hook=job.hook,
        dump_level=job.dump_level,
    )
    fault = Fault(job.fault)
    bar = ProgressBar("saving", cancellable=True)

    def progress(done: int, total: int, written: int) -> bool:
        fault.due(done / max(total, 1))
        return bar(done, total, written)

    fault.due(0.0)
    try:
        return save(
            parked,
            RangeSet(job.ram),
            facts,
            made.target,
            free_pages=job.free_pages,
            level=job.level,
            threads=os.cpu_count() or 1,
            progress=progress,
            finish=made.finish,
        )
    finally:
        bar.close()


def none_job(work: Work) -> Done:
    """Go back at once; what A sent is sent back."""
    return Done(message=work.message)


def command_job(work: Work, job: CommandJob) -> Done:
    """Run `argv`; what A sent is its standard input. Its output is sent back, its exit `status` is in the report.

    With `background` it is started and left alone, and its `pid` is in the report.
    """
    argv = list(job.argv)
    if not argv:
        raise UsageError("the job `command` was given no command")
    if job.background:
        with open(os.devnull, "r+b") as null:  # noqa: PTH123
            return Done(Report(pid=_start(argv, null.fileno(), null.fileno())))
    with os.fdopen(os.memfd_create("given"), "r+b") as given, os.fdopen(os.memfd_create("output"), "r+b") as output:
        given.write(work.message)
        given.flush()
        given.seek(0)
        _, status = os.waitpid(_start(argv, given.fileno(), output.fileno()), 0)
        output.seek(0)
        return Done(Report(status=os.waitstatus_to_exitcode(status)), output.read())


def _start(argv: list[str], stdin: int, output: int) -> int:
    actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
    try:
        return os.posix_spawnp(argv[0], argv, os.environ, file_actions=actions, setpgroup=0)
    except OSError as error:
        raise HostError(f"the second kernel cannot run {argv[0]}: {error.strerror}") from None


def shell_job(work: Work) -> Done:
    """Run a shell on the console until somebody leaves it; HostError when the initramfs has none."""
    shell = next((path for path in _SHELLS if os.access(path[0], os.X_OK)), None)
    if shell is None:
        raise HostError("the second kernel's initramfs has no shell: add one with a further --initrd")
    work.role.console.line("kjump: a shell of the second kernel; `exit` goes back to the first system")
    pid = os.posix_spawn(shell[0], shell, os.environ)
    _, status = os.waitpid(pid, 0)
    return Done(Report(status=os.waitstatus_to_exitcode(status)))


def look_job(job: LookJob) -> Done:
    """Look at A as `kjump peer` does, with the words `argv`; what it prints is the `output`, cut if it is too long."""
    from kjump.init.jobs.look import look

    output = look(job.argv)
    report = Report(output=output, seed=fresh_seed())
    while not mailbox.fits(report.to_json() | {"spare": " " * _SPARE}):
        shown = report.output[: len(report.output) * 9 // 10]
        report = replace(report, output=shown, cut=len(output) - len(shown))
    return Done(report)


_SHELLS = (["/bin/sh"], ["/bin/busybox", "sh"], ["/usr/bin/python3", "-ISq"])
