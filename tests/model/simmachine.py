"""A made-up machine on which kjump's own code hibernates, boots, resumes and rolls back, and anything may go wrong.

All of the product runs: `suspend.travel` and `rollback.rollback` in A, PID 1 with its roles in the second kernel, at a
boot and in C. What lies below it is simulated: memory and the kernel's files (`simmemory`), disks (`simdisk`), and the
loader, which is the machine itself: a jump runs the next kernel, within the call.

A kernel that has been left does no more: all that its code still asks of the machine raises `Left`, until the call
that began it has returned.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import rules
import simmemory
from rules import Saved
from simdisk import Kept, SimDisk, SimDisks
from simmemory import CONTROL, HEAD_AT, LIST, MAILBOX, POOL, RAM, Memory

from kjump.errors import FormatError, HostError, KjumpError
from kjump.formats import cpio
from kjump.formats.superblock import State, Superblock
from kjump.gates import GATE_ENTRY, GATE_WAY_BACK, STATE_ENTERED
from kjump.init import main as pid1
from kjump.kexec import mailbox
from kjump.kexec.kimage import IND_DESTINATION, IND_DONE, IND_INDIRECTION, IND_SOURCE, walk
from kjump.kexec.plan import ON_CRASH, Plan
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

TARGET, FILE_SYSTEM, FILE = "/dev/sim", "/dev/fs", "/target.img"
EXTENTS = (Range(64 << 12, 72 << 12), Range(10 << 12, 60 << 12), Range(80 << 12, 240 << 12))
_TARGET_SIZE = 1 << 20
_FS_SIZE = 72 << 10
_MOST_BOOTS = 12
_COMMAND_LINE_POINTER, _INITRD = 0x228, 0x218
"""Fields of boot_params (Documentation/arch/x86/boot.rst)."""


class Left(SystemExit):
    """The kernel that runs this code does not run any more."""


@dataclass
class Kernel:
    """A kernel that runs: its `name` is A, B, C or boot."""

    name: str
    alive: bool = True
    slot: Plan | None = None
    crash: Plan | None = None


Fault = Callable[["Machine", str, Callable[[], None]], None]
"""Called with the machine, what its kernel asks for, and the doing."""


@dataclass
class Machine:
    """One machine. `violations` are the rules that were broken; `log` is what its kernels asked of it.

    `file`: the target is a file, in extents; `blind`: file systems' digests see nothing; `by_c`: there is no memory
    beside a boot kernel; `read_only`: so is A's file system. `faults` are called in place of events, by their number.
    """

    folder: Path
    chance: random.Random
    file: bool = False
    blind: bool = False
    by_c: bool = False
    read_only: bool = False
    faults: dict[int, Fault] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    log: list[tuple[str, str]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Switch it on, with an empty target."""
        (self.folder / "dev").mkdir()
        simmemory.write_files(self.folder, [FILE_SYSTEM, TARGET])
        (self.folder / "kjump").mkdir()
        self.memory = Memory(self.folder / "dev/mem")
        self.target = SimDisk(_TARGET_SIZE, EXTENTS[0].start if self.file else 0)
        self.file_system = SimDisk(_FS_SIZE)
        self.disks = SimDisks({TARGET: self.target, FILE_SYSTEM: self.file_system}, self._events)
        self.disks.files = {FILE} if self.file else set()
        self.kernel = Kernel("A")
        self.world = 0
        self.saved: dict[bytes, Saved] = {}
        self.cursed = ("", "")
        """A kernel, and what it cannot do: it panics each time."""
        self.resumed = self.boots = 0
        self.cut_in: set[State] = set()
        self.power_off_fails = self.excused = False
        self.snapshot = False
        """A is left for a snapshot."""
        self.at_rest = False
        """Nobody in A writes to a file system."""
        self.at_power_off: Callable[[], None] = lambda: None
        self.tell: Callable[[str], None] = self.told.append
        self.on_return: Callable[[], None] = lambda: None
        self.parting = ""
        self.options: tuple[str, ...] = ()
        self._how, self._frozen = "", b""
        self.room: Any = None
        self.troubles = 0
        """Faults that are not a loss of power, so far: after one, nobody can be asked to have left all in order."""
        if self.read_only:
            mounts = self.folder / "proc/self/mounts"
            mounts.write_text(mounts.read_text().replace("rw,relatime", "ro,relatime"))
        self.touch()
        self.memory.fill(self.chance)

    def close(self) -> None:
        """Switch it off for good."""
        self.memory.close()
        self.target.close()
        self.file_system.close()

    @property
    def path(self) -> str:
        """The target as A's user names it."""
        return FILE if self.file else TARGET

    # --- events, and whose turn it is ---

    def _events(self) -> Callable[[str, Callable[[], None]], None]:
        kernel = self.kernel
        return lambda what, do: self._event(kernel, what, do)

    def _event(self, kernel: Kernel, what: str, do: Callable[[], None]) -> None:
        self._alive(kernel)
        self.log.append((kernel.name, what))
        fault = self.faults.get(len(self.log))
        if (kernel.name, what) == self.cursed:
            self.panic()
        if fault is None:
            do()
        else:
            fault(self, what, do)

    def _alive(self, kernel: Kernel) -> None:
        if not kernel.alive:
            raise Left

    def leave(self, how: str) -> None:
        """Let the kernel that runs do no more; `how` is what its beginning returns."""
        self._alive(self.kernel)
        self.kernel.alive = False
        self._how = how
        self._frozen = self.memory.read(MAILBOX, PAGE_SIZE)
        raise Left

    def run(self, name: str, play: Callable[[], None]) -> str:
        """Run a kernel until it is left; return how."""
        before, self.kernel = self.kernel, Kernel(name)
        kernel = self.kernel
        try:
            play()
            self.violations.append(f"{name} came to its end")
        except Left:
            pass
        finally:
            kernel.alive = False
            self.kernel = before
        self.memory.write(MAILBOX, self._frozen)
        return self._how

    def cut(self, kept: Kept) -> None:
        """Lose the power."""
        self._alive(self.kernel)
        self._ends_early()
        for disk in (self.target, self.file_system):
            disk.lose_power(kept, self.chance)
        self.cut_in.add(self.superblock().state)
        self.leave("cut")

    def _ends_early(self) -> None:
        """Excuse what docs/safety.md says is left: A's processes thaw before its command runs."""
        if self.kernel.name == "A" and self.parting == "odd" and self.blind:
            self.excused = True

    def panic(self) -> None:
        """Let the kernel that runs panic."""
        self._alive(self.kernel)
        self._ends_early()
        self.troubles += 1
        if self.kernel.name == "B" and self.kernel.crash is not None:
            struct.pack_into("<Q", self.memory.bytes, MAILBOX + 0x10, mailbox.Outcome.PANIC)
            self.leave("home")
        self.leave("restart")

    def touch(self) -> None:
        """Let the system that runs write to its file system."""
        if self.read_only:
            return
        self.world += 1
        (self.folder / "sys/dev/block/0:0/stat").write_text(f"0 0 0 0 0 0 {self.world} 0 0 0 0 0 0 0\n")
        if not self.blind:
            self.file_system.write(0, self.world.to_bytes(512, "little"))
            self.file_system.flush()

    # --- the loader: see kjump.kexec.loader ---

    max_segments, share_of_ram, gate_restores_gdt = 16, 0.5, True

    def load(self, plan: Plan) -> None:
        """Take a Plan; A's takes pages of A's RAM."""
        self._event(self.kernel, "load", lambda: None)
        if plan.flags & ON_CRASH:
            self.kernel.crash = plan
            return
        self.kernel.slot = plan
        if plan.preserves_context:
            self._take_pages(plan)

    def unload(self, flags: int) -> None:
        """Let go of it."""
        self._event(self.kernel, "unload", lambda: None)
        self.kernel.slot = None

    def is_loaded(self, *, on_crash: bool = False) -> bool:
        """Tell what is loaded."""
        self._alive(self.kernel)
        return (self.kernel.crash if on_crash else self.kernel.slot) is not None

    def image_list_head(self, kcore: Any) -> int:
        """Return the head of the list of pages."""
        self._alive(self.kernel)
        return LIST | IND_INDIRECTION

    def power_off(self) -> None:
        """Switch off, unless that fails."""
        self._event(self.kernel, "power off", lambda: None)
        self.at_power_off()
        if self.power_off_fails:
            raise HostError("the machine did not power off (is ACPI in the kernel?)")
        self.target.lose_power(Kept.NONE, self.chance)
        self.leave("off")

    def restart(self) -> None:
        """Restart, which leaves the disks their caches."""
        self._event(self.kernel, "restart", lambda: None)
        self.leave("restart")

    def halt(self) -> None:
        """Stop, with what was said on the screen."""
        self._event(self.kernel, "halt", lambda: None)
        self.leave("halted")

    def jump(self) -> None:
        """Go to another kernel; returns in A when A is back."""
        self._event(self.kernel, "jump", lambda: None)
        plan = self.kernel.slot
        if plan is None:
            raise HostError("the jump was refused: nothing is loaded")
        if self.kernel.name == "A" and plan.preserves_context:
            self._to_b(plan)
        elif self.kernel.name == "B":
            self.leave("home")
        elif any(s.name == "kernel" for s in plan.segments):
            self._next = plan
            self.leave("C")
        else:
            self._bring_back(plan)
            self.leave("resumed")

    # --- A and B ---

    def superblock(self, *, cached: bool = False) -> Superblock:
        """Return the target's superblock, the durable or the `cached` one; an empty one when none is sound."""
        at = EXTENTS[0].start if self.file else 0
        try:
            return Superblock.unpack(os.pread(self.target.fd, 4096, at) if cached else self.target.durable(at, 4096))
        except FormatError:
            return Superblock()

    def _take_pages(self, plan: Plan) -> None:
        """Put what is loaded into free pages of A, as the kernel does; what is not A's RAM is filled at once."""
        free = iter(range(POOL.start, POOL.end, PAGE_SIZE))
        self._pairs = []
        for segment in plan.segments:
            for item in RangeSet([segment.range]) & RAM:
                for at in range(item.start, item.end, PAGE_SIZE):
                    source, offset = next(free), at - segment.address
                    self.memory.write(source, segment.data[offset : offset + PAGE_SIZE].ljust(PAGE_SIZE, b"\0"))
                    self._pairs.append((at, source))
            for item in RangeSet([Range.of_size(segment.address, len(segment.data))]) - RAM:
                start = item.start - segment.address
                self.memory.write(item.start, segment.data[start : start + item.size])
        words = [w for at, source in self._pairs for w in (at | IND_DESTINATION, source | IND_SOURCE)]
        self.memory.write(LIST, struct.pack(f"<{len(words) + 1}Q", *words, IND_DONE))

    def _swap(self, pairs: list[tuple[int, int]]) -> None:
        for one, other in pairs:
            there, here = self.memory.read(one, PAGE_SIZE), self.memory.read(other, PAGE_SIZE)
            self.memory.write(one, here)
            self.memory.write(other, there)

    def _to_b(self, plan: Plan) -> None:
        """Leave A for B; returns when A is back."""
        struct.pack_into("<Q", self.memory.bytes, HEAD_AT, LIST | IND_INDIRECTION)
        saved = Saved(self.memory.picture(), self.world, self._pairs, snapshot=self.snapshot)
        self.saved[self.superblock(cached=True).cookie] = saved
        self._swap(self._pairs)
        gate_at = plan.entry - GATE_ENTRY
        gate = replace(self.memory.gate(gate_at), a_entry=CONTROL + 0x20, state=STATE_ENTERED)
        self.memory.write(gate_at, gate.pack())
        self.parting = ""
        how = self._start("B", gate.peer_argument)
        if how == "home":
            self._swap(self._pairs)
            rules.same(self, saved, "A after B")
            rules.parting(self)
            if not self.at_rest:
                self.touch()  # A's processes thaw
        elif how == "cut" or how in ("off", "restart"):
            how = self.boot()
        if how not in ("home", "resumed"):
            self.leave("lost")
        self.on_return()

    def _start(self, name: str, boot_params: int) -> str:
        """Start a kernel by the 64-bit boot protocol: its initramfs is unpacked, PID 1 runs."""
        (line_at,) = struct.unpack("<I", self.memory.read(boot_params + _COMMAND_LINE_POINTER, 4))
        at, size = struct.unpack("<II", self.memory.read(boot_params + _INITRD, 8))
        files = {entry.name: entry.data for entry in cpio.iterate(self.memory.read(at, size))}
        (self.folder / "kjump/job.json").write_bytes(files["kjump/job.json"])
        line = self.memory.read(line_at, 2048).split(b"\0")[0].decode()
        return self._pid1(name, line)

    def _pid1(self, name: str, line: str) -> str:
        own = (self.folder / "proc/cmdline").read_text()
        (self.folder / "proc/cmdline").write_text(line + "\n")
        try:
            return self.run(name, pid1.main)
        finally:
            (self.folder / "proc/cmdline").write_text(own)

    def surprised(self, name: str, error: BaseException) -> None:
        """PID 1 has met `error`, which its role did not see to."""
        self._alive(self.kernel)
        if not isinstance(error, KjumpError):
            self.violations.append(f"{name} raised {type(error).__name__}: {error}")

    # --- boots, and the end of a resume ---

    def boot(self) -> str:
        """Switch on, as often as it takes; return "ordinary", "resumed", or "halted"."""
        for _ in range(_MOST_BOOTS):
            self.boots += 1
            (self.folder / "kjump/job.json").unlink(missing_ok=True)
            self.memory.fill(random.Random(self.boots))
            where = [f"kjump.resume={TARGET}"]
            if self.file:
                where.append(f"kjump.resume_offset={EXTENTS[0].start // PAGE_SIZE}")
            direct = ["kjump.nodirect"] if self.by_c else []
            how = self._pid1("boot", " ".join([f"root={FILE_SYSTEM}", *where, *direct, *self.options]))
            if how == "C":
                how = self.start_c()
            if how in ("ordinary", "resumed", "halted"):
                if how == "ordinary":
                    self.touch()  # it mounts its file systems
                elif how == "halted":
                    self.violations.append("a boot halted the machine")
                return how
        self.violations.append(f"the machine restarted {_MOST_BOOTS} times")
        return "ordinary"

    def start_c(self) -> str:
        """Start the kernel that was jumped to, which does not come back."""
        plan = self._next
        self.memory.fill(random.Random(self.boots))
        self._fill(plan)
        return self._start("C", self.memory.gate(plan.entry - GATE_ENTRY).peer_argument)

    def _fill(self, plan: Plan) -> None:
        for segment in plan.segments:
            self.memory.write(segment.address, segment.data)

    def _bring_back(self, plan: Plan) -> None:
        """Go back to A as gate and A's kernel do, and judge what runs then."""
        self._fill(plan)
        for segment in plan.segments:
            if segment.name == "page list":
                for source, home, pages in struct.iter_unpack("<3Q", segment.data):
                    self.memory.write(home, self.room.read(source, pages * PAGE_SIZE))
        (head,) = struct.unpack("<Q", self.memory.read(HEAD_AT, 8))
        assert plan.entry & 0xFFF == GATE_WAY_BACK & 0xFFF
        runs = walk(self.memory.read, head)
        self._swap([((d + i) * PAGE_SIZE, (s + i) * PAGE_SIZE) for d, s, n in runs for i in range(n)])
        rules.brought_back(self)
