"""The jobs of a second kernel: each takes its `Work` and returns what A finds in the report.

A job that raises brings A back with the reason; a job that switches the machine off does not return.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kjump import _core
from kjump.errors import HostError, UsageError
from kjump.gates import Gate
from kjump.hibernate.after_jump import fresh_seed
from kjump.hibernate.hooks import HOOK, environment
from kjump.image.save import Parked, SaveResult, open_parked, save
from kjump.init import run_program
from kjump.init.console import ProgressBar
from kjump.init.jobs.faults import Fault
from kjump.init.system import Role
from kjump.init.unfinished import Unfinished, unfinished
from kjump.init.watchdog import Guard
from kjump.kexec import loader, mailbox
from kjump.kexec.kimage import kept_head
from kjump.ranges import Range, RangeSet
from kjump.target import filesystems
from kjump.target.device import Place, find_target

_TARGET_TIMEOUT = 5.0
_SPARE = 300
"""Bytes of a report that are left for what the role adds to it."""


@dataclass(frozen=True)
class Work:
    """What a job is given: its role (with `role.job`), the gate, the head of A's indirection list, A's last words.

    `guard` brings A back when the job takes too long; a job disarms it before what must not be undone. `message` is
    bytes that A sent along; what a job returns as `message` (bytes) a resident peer sends back.
    """

    role: Role
    gate: Gate
    head: int
    guard: Guard
    message: bytes = b""
    words: dict[str, Any] = field(default_factory=dict)


def save_job(work: Work) -> dict[str, Any]:
    """Save A to the target; then switch the machine off, or with `then` = "back" return what was saved, and when."""
    role = work.role
    stamps = {"entered": work.gate.tsc_in, "begun": _core.time_stamp()}
    if HOOK.exists():
        role.console.line("kjump: the hook puts file systems aside")
        timeout = role.job["facts"]["hook_timeout"]
        run_program.require([str(HOOK), "save"], environment(), timeout=timeout, what="the hook")
    stamps["hooked"] = _core.time_stamp()
    fault = Fault(role.job["fault"])
    parked = open_parked(work.head)
    place = Place.from_json(role.job["target"])
    target = find_target(bytes.fromhex(role.job["cookie"]), place, timeout=_TARGET_TIMEOUT)
    with unfinished(target, work.guard) as made:
        result = _save(work, parked, made, fault)
        role.status.send("saved", **result.as_report())
        if role.job["then"] == "back":
            stamps["saved"] = _core.time_stamp()
            done = {"saved": result.as_report(), "stamps": stamps, "seed": fresh_seed()}
            made.keep()
            return done
        megabytes = result.image_bytes / 1e6
        role.console.line(f"kjump: the first system is saved ({megabytes:.1f} MB on the target); switching off")
        if not work.guard.disarm():
            raise HostError("the time limit struck when the image was complete")
        loader.current().power_off()
        raise AssertionError("the machine went on after it was switched off")


def _save(work: Work, parked: Parked, made: Unfinished, fault: Fault) -> SaveResult:
    role, job = work.role, work.role.job
    role.status.send("save-begins")
    facts = job["facts"] | {
        "gate": _gate_facts(work.gate),
        "kept_head": kept_head(parked.raw.read, work.gate.a_entry, work.head),
        "saved_at": time.time(),
        "file_systems": filesystems.record(job["file_systems"]),
        "words": work.words,
    }
    bar = ProgressBar("saving", cancellable=True)

    def progress(done: int, total: int, written: int) -> bool:
        fault.due(done / max(total, 1))
        return bar(done, total, written)

    fault.due(0.0)
    try:
        return save(
            parked,
            RangeSet(Range(*pair) for pair in job["ram"]),
            facts,
            made.target,
            free_pages=job["free_pages"],
            level=int(job["level"]),
            dump_level=job.get("dump_level"),
            threads=os.cpu_count() or 1,
            progress=progress,
            finish=made.finish,
        )
    finally:
        bar.close()


def _gate_facts(gate: Gate) -> dict[str, Any]:
    facts = dataclasses.asdict(gate)
    facts["cookie"] = gate.cookie.hex()
    return facts


def none_job(work: Work) -> dict[str, Any]:
    """Go back at once; what A sent is sent back."""
    return {"message": work.message}


def command_job(work: Work) -> dict[str, Any]:
    """Run `argv`; what A sent is its standard input. Its output is sent back, its exit `status` is in the report.

    With `background` it is started and left alone, and its `pid` is in the report.
    """
    argv = [str(word) for word in work.role.job["argv"]]
    if not argv:
        raise UsageError("the job `command` was given no command")
    if work.role.job.get("background"):
        with open(os.devnull, "r+b") as null:  # noqa: PTH123
            return {"pid": _start(argv, null.fileno(), null.fileno())}
    with os.fdopen(os.memfd_create("given"), "r+b") as given, os.fdopen(os.memfd_create("output"), "r+b") as output:
        given.write(work.message)
        given.flush()
        given.seek(0)
        _, status = os.waitpid(_start(argv, given.fileno(), output.fileno()), 0)
        output.seek(0)
        return {"status": os.waitstatus_to_exitcode(status), "message": output.read()}


def _start(argv: list[str], stdin: int, output: int) -> int:
    actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
    try:
        return os.posix_spawnp(argv[0], argv, os.environ, file_actions=actions, setpgroup=0)
    except OSError as error:
        raise HostError(f"the second kernel cannot run {argv[0]}: {error.strerror}") from None


def shell_job(work: Work) -> dict[str, Any]:
    """Run a shell on the console until somebody leaves it; HostError when the initramfs has none."""
    shell = next((path for path in _SHELLS if os.access(path[0], os.X_OK)), None)
    if shell is None:
        raise HostError("the second kernel's initramfs has no shell: add one with a further --initrd")
    work.role.console.line("kjump: a shell of the second kernel; `exit` goes back to the first one")
    pid = os.posix_spawn(shell[0], shell, os.environ)
    _, status = os.waitpid(pid, 0)
    return {"status": os.waitstatus_to_exitcode(status)}


def peer_job(work: Work) -> dict[str, Any]:
    """Look at A as `kjump peer` does, with the words `argv`; what it prints is the `output`, cut if it is too long."""
    from kjump.init.jobs.look import look

    output = look([str(word) for word in work.role.job["argv"]])
    report = {"output": output, "seed": fresh_seed()}
    while not mailbox.fits(report | {"spare": " " * _SPARE}):
        report["output"] = report["output"][: len(report["output"]) * 9 // 10]
    return report | {"cut": len(output) - len(report["output"])}


_SHELLS = (["/bin/sh"], ["/bin/busybox", "sh"], ["/usr/bin/python3", "-ISq"])

JOBS: dict[str, Callable[[Work], dict[str, Any]]] = {
    "save": save_job,
    "peer": peer_job,
    "none": none_job,
    "command": command_job,
    "shell": shell_job,
}
