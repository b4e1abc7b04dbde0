"""A machine with one simulated disk, on which kjump's own code saves, boots and resumes, and anything may go wrong.

What runs is the product's: `suspend.travel` in A, the role, its guard and its job in B, the boot role, the restore.
What is put in its place lies below: the disk (`crash_disk`, with a volatile cache), the jumps, /proc/vmcore, the
memory that is restored to, and the digests of file systems, which here see nothing.

Each kernel that A leaves for runs in threads of its own. A kernel that has been left runs no more: its threads stop
for good at the next thing they do that others could see.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from crash_disk import DEVICE, Disk, SimDisks

from kjump.formats import notes, superblock
from kjump.formats.e820 import RAM, E820Entry
from kjump.gates import Gate
from kjump.hibernate import resume, suspend
from kjump.hibernate.jobs import Assignment, SaveJob, Then
from kjump.host.kernel_memory import FreePages
from kjump.image import headers as image_headers
from kjump.image import restore
from kjump.image.facts import Kind, SystemFacts
from kjump.image.save import Parked
from kjump.init import finish_restore, jobs, unfinished
from kjump.init.roles import boot, second
from kjump.init.system import Role
from kjump.kexec import loader, mailbox
from kjump.kexec.kimage import ParkedMemory, Shadow, ShadowRun
from kjump.kexec.way_back import WayBack
from kjump.memory import PAGE_SIZE, FileMemory, FilePiece
from kjump.ranges import Range
from kjump.target import device as targets
from kjump.target import disks
from kjump.target.device import Place, Target
from kjump.target.states import Departure, Lineage

DEPARTURE = Departure(Lineage("boot"), ())
NO_ASSIGNMENT = Assignment()
_PAGES = 48
_SHADOW = Shadow([ShadowRun(16, 40, 4), ShadowRun(20, 20, 1), ShadowRun(21, 44, 3)])
MEMORY_MAP = (E820Entry(Range(0, _PAGES * PAGE_SIZE), RAM),)
_NOTE = notes.Note("VMCOREINFO", 0, b"OSRELEASE=test\n").encode()
COOKIE = bytes(range(16))
_TOO_LONG = 30.0

Event = Callable[[str, str], None]
"""Called with who runs ("A", "B", "boot") and what is done: "read", "write", "flush"; OSError makes it fail."""


def nothing(who: str, what: str) -> None:
    """Let all go well."""


def failing(who: str, what: str, *, times: int, number: int = errno.EIO, after: int = 0) -> Event:
    """Return an `Event` that lets so many operations of a kind fail, `after` so many that go well."""
    done = 0

    def event(runs: str, does: str) -> None:
        nonlocal done
        if (runs, does) == (who, what):
            done += 1
            if after < done <= after + times:
                raise OSError(number, os.strerror(number))

    return event


class PowerLost(BaseException):
    """The power goes: A's code runs no more."""


class Machine:
    """One machine: `event` watches its disk, `power_off` and `came_back` are what happens at those moments.

    `power_off` is called by B; a machine that is to go off calls `off`. `came_back` is called when A's jump returns,
    before A does anything. `notes` is what A's command told its user.
    """

    def __init__(self) -> None:
        """Make one whose disk is empty."""
        self.disk = Disk()
        self.event: Event = nothing
        self.power_off: Callable[[], None] = self.off
        self.came_back: Callable[[], None] = lambda: None
        self.in_b: Callable[[str], object] = lambda line: None
        self.time_limit = 1000.0
        self.then = "power-off"
        self.told: list[str] = []
        self.lines: list[str] = []
        self.page = bytearray(PAGE_SIZE)
        self.channel = bytearray()
        self._runs = "A"
        self._left = threading.Event()
        self._leaving = threading.Lock()
        self._how = ""

    # --- whose turn it is ---

    def alive(self, who: str) -> None:
        """Go on only if kernel `who` runs; a thread of one that was left stops here for good."""
        if self._runs != who:
            threading.Event().wait()

    def leave(self, how: str) -> None:
        """The kernel that runs is left for good; `how` is what its caller gets."""
        with self._leaving:
            if self._runs:
                self._how, self._runs = how, ""
                self._left.set()
        threading.Event().wait()

    def off(self) -> None:
        """The machine switches off."""
        self.leave("off")

    def panic(self) -> None:
        """B panics: A is back by way of the crash slot."""
        self.report(mailbox.Outcome.PANIC, {})
        self.leave("home")

    def _run(self, who: str, function: Callable[[], None]) -> str:
        """Run another kernel until it is left; return how."""
        self._left.clear()
        self._runs = who

        def body() -> None:
            function()
            self.leave("ended")

        threading.Thread(target=body, daemon=True).start()
        assert self._left.wait(_TOO_LONG), f"{who} hangs"
        return self._how

    def power_goes(self) -> None:
        """A has no power any more, and reaches its disk no more."""

        def dead(who: str, what: str) -> None:
            raise PowerLost

        self.event = dead
        raise PowerLost

    # --- the disk ---

    def open(self, path: str = DEVICE) -> Target:
        """Open the disk as the kernel that runs."""
        return Target(DEVICE, writable=True)

    @property
    def state(self) -> superblock.State:
        """What the superblock says, as it is read now."""
        return self.disk.superblock().state

    # --- A ---

    def request(self, **more: Any) -> suspend.TripRequest:
        """Return what the user asks for."""
        return suspend.TripRequest(DEVICE, None, None, **more)  # type: ignore[arg-type]

    def travel(self, **more: Any) -> suspend.Trip:
        """Leave A for B, and return what A's command makes of it."""
        return suspend.travel(self.request(**more), self.told.append)

    def prepare(self, request: Any, kcore: Any, target: Target, tell: Any) -> Any:
        """Stand for `suspend._prepare`."""
        self.cookie = target.arm().cookie
        box = SimpleNamespace(post=self._post, wipe=lambda: None, read=self._read)
        layout = SimpleNamespace(window=Range(0, 1 << 20))
        return SimpleNamespace(box=box, layout=layout, cookie=self.cookie, file_systems=[], plan=None)

    def _post(self, head: int, message: dict[str, Any]) -> None:
        self.report(mailbox.Outcome.NONE, message)

    def report(self, outcome: mailbox.Outcome, report: dict[str, Any]) -> None:
        """Leave `outcome` and `report` in the mailbox."""
        self.page[:] = mailbox.encode(COOKIE, outcome, 0, report)

    def _read(self) -> tuple[mailbox.Outcome, Any]:
        found = mailbox.decode(bytes(self.page))
        return found.outcome, found.report

    def jump(self) -> None:
        """Jump from A to B; returns when A is back, at once or after a boot that resumed it."""
        how = self._run("B", self.b)
        if how == "off":
            self.disk.lose_power(cache=False)
            how = self.boot()
        self._runs = "A"
        assert how in ("home", "resumed"), how
        self.came_back()

    # --- B ---

    def job(self) -> SaveJob:
        """Return what B is to do."""
        window, low = Range.of_size(16 * PAGE_SIZE, 8 * PAGE_SIZE), Range.of_size(PAGE_SIZE, PAGE_SIZE)
        return SaveJob(
            kind=self.kind,
            then=Then(self.then),
            target=Place(DEVICE),
            cookie=self.cookie,
            system=SystemFacts(
                "6.1.0", "a CPU", frozenset({"fpu"}), False, MEMORY_MAP, window, low, 0x17000, PAGE_SIZE
            ),
            file_systems=(),
            ram=(Range(0, _PAGES * PAGE_SIZE),),
            free_pages=FreePages.POISON,
            level=1,
        )

    @property
    def kind(self) -> Kind:
        """The kind of image."""
        return Kind.HIBERNATION if self.then == "power-off" else Kind.SNAPSHOT

    def role(self, options: dict[str, str], assignment: Assignment = NO_ASSIGNMENT) -> Role:
        """Return the role of a kernel whose console and status channel are `lines` and `in_b`."""

        def line(text: str) -> None:
            self.lines.append(text)
            self.in_b(text)

        console, status = SimpleNamespace(line=line), SimpleNamespace(send=lambda e, **_: self.in_b(e), close=list)
        way_back = WayBack(gate=PAGE_SIZE, tables=2 * PAGE_SIZE)
        return Role(options, assignment, console, status, way_back=way_back)  # type: ignore[arg-type]

    def b(self) -> None:
        """Run the second role."""
        second.run(self.role({}, Assignment(self.job(), time_limit=self.time_limit)))

    def go_home(self) -> None:
        """Jump from B to A."""
        self.alive("B")
        self.leave("home")

    def parked(self, head: int) -> Parked:
        """Return A as B sees it."""
        fd = os.memfd_create("vmcore")
        os.write(fd, random.Random(1).randbytes(_PAGES * PAGE_SIZE))
        raw = FileMemory(fd, [FilePiece(0, _PAGES * PAGE_SIZE, 0)])
        return Parked(raw, ParkedMemory(raw, _SHADOW), _SHADOW, _NOTE, None)  # type: ignore[arg-type]

    # --- a boot ---

    def boot_after_power_loss(self, *, cache: bool = False) -> str:
        """Lose the power, and boot; return as `boot` does."""
        self.event = nothing
        self.disk.lose_power(cache=cache)
        return self.boot()

    def boot(self, **options: str) -> str:
        """Boot; return "ordinary", or "resumed" when the image ran."""
        return self._run("boot", lambda: self._boot({"kjump.resume": DEVICE} | options))

    def _boot(self, options: dict[str, str]) -> None:
        boot._try_to_resume(self.role(options), DEVICE)
        self.leave("ordinary")


class _Landing:
    """Memory that is restored to."""

    def __init__(self, machine: Machine, contents: image_headers.ImageContents) -> None:
        self.fd = os.memfd_create("ram")
        os.ftruncate(self.fd, _PAGES * PAGE_SIZE)
        self.spans = contents.spans_to_restore
        self._machine = machine

    def way_back(self, gate: Any) -> None:
        return None

    def mailbox(self, gate: Any) -> Any:
        return SimpleNamespace(report=self._machine.report)

    def __enter__(self) -> _Landing:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


class _Loader:
    """What any kernel of the machine loads and jumps with: who runs decides what comes of it."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def load(self, plan: Any) -> None:
        pass

    def unload(self, flags: int) -> None:
        pass

    def is_loaded(self, *, on_crash: bool = False) -> bool:
        return not on_crash and self._machine._runs == "A"

    def image_list_head(self, kcore: Any) -> int:
        return 0

    def jump(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._machine.jump()
        elif self._machine._runs == "boot":
            self._machine.leave("resumed")
        else:
            self._machine.go_home()

    def power_off(self) -> None:
        self._machine.alive("B")
        self._machine.power_off()


class _Bar:
    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: int) -> bool:
        return True

    def close(self) -> None:
        pass


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    """Have a machine: what the product calls below itself leads there meanwhile."""
    made = Machine()
    with loader.used(_Loader(made)), disks.used(SimDisks(made)), pytest.MonkeyPatch.context() as patch:  # type: ignore[arg-type]
        _patch_disk(patch, made)
        _patch_a(patch, made)
        _patch_b(patch, made)
        _patch_boot(patch, made)
        yield made


def _patch_disk(patch: pytest.MonkeyPatch, made: Machine) -> None:
    patch.setattr(targets, "_PAUSES", (0.0,) * 5)


def _patch_a(patch: pytest.MonkeyPatch, made: Machine) -> None:
    patch.setattr(suspend, "_prepare", made.prepare)
    patch.setattr(suspend, "claim", lambda request: made.open())
    patch.setattr(suspend, "open_for_image", made.open)
    kernel = SimpleNamespace(Kcore=contextlib.nullcontext)
    patch.setattr(suspend, "kernel_memory", kernel)
    patch.setattr(suspend, "take_leave", lambda items, pace: pace.measure() or DEPARTURE)
    patch.setattr(suspend.after_jump, "mend", lambda *_: 0.0)
    patch.setattr(suspend.post_mortem, "with_log", lambda kcore, report: replace(report, panic="Kernel panic"))


def _patch_b(patch: pytest.MonkeyPatch, made: Machine) -> None:
    def report(outcome: mailbox.Outcome, report: dict[str, Any]) -> None:
        made.alive("B")
        made.report(outcome, report)

    page = SimpleNamespace(message={}, head=0, report=report)
    patch.setattr(second, "gate_of", lambda way: Gate())
    patch.setattr(second.mailbox, "PeerMailbox", SimpleNamespace(at_physical=lambda address, cookie: page))
    patch.setattr(second, "uptime", lambda: 1.0)
    patch.setattr(jobs, "open_parked", made.parked)
    patch.setattr(jobs, "kept_head", lambda *_: 0)
    patch.setattr(jobs, "ProgressBar", _Bar)
    patch.setattr(unfinished, "_PATIENCE", 2.0)


def _patch_boot(patch: pytest.MonkeyPatch, made: Machine) -> None:
    patch.setattr(boot, "_land_aside", lambda role, opened: _Landing(made, opened.contents))
    patch.setattr(boot, "uptime", lambda: 1.0)
    patch.setattr(resume, "_check_this_machine", lambda opened: None)
    patch.setattr(finish_restore, "restore", restore.restore)
    patch.setattr(finish_restore, "_gate_for_a", lambda facts: None)
    patch.setattr(finish_restore, "ProgressBar", _Bar)
