"""A machine that programs can be called on: the running one or an emulated one, with the same interface.

```
with machine.load(program) as loaded:
    loaded.call(2, 40).value
    loaded.call(b"bytes", 7).output
```
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from kjump.call.program import (
    BUFFER_SIZE,
    Preserve,
    Program,
    Surface,
    front_segment,
    in_memory,
    lay_out,
    plan_bare,
    plan_call,
)
from kjump.errors import JumpError, UsageError
from kjump.gates.call import ARGS_MAX, OUTCOME_RETURNED, Fault, decode_reply, encode_request
from kjump.host.locked_memory import PinnedPages
from kjump.kexec.mailbox import COOKIE_SIZE
from kjump.kexec.plan import Plan
from kjump.memory import PAGE_SIZE
from kjump.ranges import RangeSet

Argument = int | bytes
_DATA_PAGES = BUFFER_SIZE // PAGE_SIZE

_EXCEPTIONS = {
    0: "division error",
    1: "debug exception",
    2: "non-maskable interrupt",
    3: "breakpoint",
    5: "bound exceeded",
    6: "invalid instruction",
    7: "the FPU is not available",
    8: "double fault",
    11: "segment not present",
    12: "stack fault",
    13: "general protection fault",
    14: "page fault",
    16: "floating-point error",
    17: "misaligned access",
    18: "machine check",
    19: "SIMD floating-point error",
}


def describe_exception(vector: int) -> str:
    """Return the name of exception `vector`, and its number."""
    return f"{_EXCEPTIONS.get(vector, 'exception')} ({vector})"


class FaultError(JumpError):
    """An exception ended the program, and the gate came back; this system is unharmed. `details` are lines to print."""

    def __init__(self, name: str, fault: Fault) -> None:
        """Describe the exception `fault` of the program `name`."""
        memory = f", memory address {fault.memory:#x}" if fault.vector == 14 else ""
        super().__init__(f"{name} was ended by a {describe_exception(fault.vector)} at {fault.address:#x}{memory}")
        self.fault = fault
        self.details: list[str] = []


@dataclass(frozen=True)
class CallResult:
    """The result of a call.

    `value` is what the function returned, `output` the bytes it wrote (`cut_off` when it wrote more than fit);
    `calls` the number of calls since the load; `tsc_in`, `tsc_begin`, `tsc_end` are time stamp counter values: gate
    entered, function begun, function ended.
    """

    value: int
    output: bytes
    cut_off: bool
    calls: int
    tsc_in: int
    tsc_begin: int
    tsc_end: int


class Machine(ABC):
    """A machine that can load and call programs; subclasses implement the primitives."""

    @abstractmethod
    def surface(self) -> Surface:
        """Return what a gate must know of the machine."""

    @abstractmethod
    def pin(self, count: int, avoid: RangeSet) -> PinnedPages:
        """Return `count` pinned pages outside `avoid` (physical ranges)."""

    @abstractmethod
    def hold(self, size: int) -> HeldMemory:
        """Return `size` bytes of A's memory, physically contiguous, for code that is entered where it lies."""

    @abstractmethod
    def load_plan(self, plan: Plan) -> None:
        """Load `plan`; HostError when it is refused."""

    @abstractmethod
    def jump(self) -> None:
        """Jump and come back; HostError when the jump is refused, JumpError when the program does not come back."""

    @abstractmethod
    def unload(self, plan: Plan) -> None:
        """Unload what was loaded for `plan`."""

    def report(self) -> list[str]:
        """Return further details of the last program that an exception ended, as lines to print."""
        return []

    def prepare(self, program: Program, *, preserve: Preserve = Preserve.NOTHING) -> tuple[Plan, CallMailbox]:
        """Return the Plan that calls `program` behind a gate, and the mailbox it uses; nothing is loaded."""
        surface = self.surface()
        layout, placed = lay_out(program, surface)
        box = CallMailbox(self, RangeSet([layout.range, *(s.range for s in placed.segments)]))
        plan = plan_call(placed, layout, surface, mailbox=box.address, cookie=box.cookie, preserve=preserve)
        return plan, box

    def load(self, program: Program, *, preserve: Preserve = Preserve.NOTHING) -> Loaded:
        """Load `program` behind a gate; it can be called any number of times and keeps its state between calls."""
        plan, box = self.prepare(program, preserve=preserve)
        return Loaded(self, program.name, plan, box)

    def install(self, program: Program, *, preserve: Preserve = Preserve.NOTHING) -> Loaded:
        """Put a movable `program` with its gate into A's memory, and load a fake image that enters it there."""
        surface = self.surface()
        layout, _ = lay_out(program, surface)
        held = self.hold(layout.range.size + program.range.end)
        layout, placed = lay_out(program, surface, base=held.address)
        box = CallMailbox(self, RangeSet())
        front = front_segment(placed, layout, surface, mailbox=box.address, cookie=box.cookie, preserve=preserve)
        for segment in (front, *placed.segments):
            held.write(segment.address - held.address, segment.data.ljust(segment.memory_size, b"\0"))
        return Loaded(self, program.name, plan_bare(in_memory(layout.base, program.arch)), box, held)

    def load_bare(self, program: Program) -> Loaded:
        """Load `program` without a gate: its entry point is the jump-back entry. It has no arguments or results."""
        return Loaded(self, program.name, plan_bare(program), None)


class HeldMemory(ABC):
    """Physically contiguous memory of A; `address` is physical."""

    address: int

    @abstractmethod
    def write(self, offset: int, data: bytes) -> None:
        """Put `data` at byte `offset`."""

    @abstractmethod
    def release(self) -> None:
        """Give the memory back."""


class CallMailbox:
    """The first kernel's side of a call's mailbox: one page for numbers, further pages for bytes."""

    def __init__(self, machine: Machine, avoid: RangeSet, cookie: bytes = b"") -> None:
        """Take the pages from `machine`, outside `avoid`; the cookie is random unless given."""
        self.cookie = cookie or secrets.token_bytes(COOKIE_SIZE)
        self._pages = machine.pin(1 + _DATA_PAGES, avoid)
        self.address = self._pages.addresses[0]

    @property
    def addresses(self) -> tuple[int, ...]:
        """The physical addresses of all its pages."""
        return self._pages.addresses

    def post(self, args: Sequence[Argument]) -> None:
        """Write the arguments; bytes become two arguments, an address and a length. UsageError when they do not fit."""
        numbers: list[int] = []
        data = bytearray()
        pointers = 0
        for arg in args:
            if isinstance(arg, int):
                numbers.append(arg)
                continue
            pointers |= 1 << len(numbers)
            numbers += [len(data), len(arg)]
            data += arg + b"\0"
            data += bytes(-len(data) % 16)
        if len(numbers) > ARGS_MAX or len(data) > BUFFER_SIZE:
            raise UsageError(f"a call takes {ARGS_MAX} numbers and {BUFFER_SIZE >> 10} KiB of bytes at most")
        pages = self._pages.addresses[1:]
        for index in range(0, len(data), PAGE_SIZE):
            self._pages.write(1 + index // PAGE_SIZE, bytes(data[index : index + PAGE_SIZE]))
        self._pages.write(0, encode_request(self.cookie, numbers, pointers, len(data), pages))
        self._pages.check()

    def read(self, name: str) -> CallResult:
        """Return the result; FaultError or JumpError when the function did not return."""
        reply = decode_reply(self._pages.read(0), self.cookie)
        if reply.fault is not None:
            raise FaultError(name, reply.fault)
        if reply.outcome != OUTCOME_RETURNED:
            raise JumpError(f"{name} came back without a result (outcome {reply.outcome})")
        kept = min(reply.out_length, BUFFER_SIZE)
        output = b"".join(self._pages.read(1 + i) for i in range(-(-kept // PAGE_SIZE)))[:kept]
        times = (reply.tsc_in, reply.tsc_begin, reply.tsc_end)
        return CallResult(reply.value, output, reply.out_length > kept, reply.calls, *times)

    def release(self) -> None:
        """Give the pages back."""
        self._pages.release()


class Loaded:
    """A loaded program; a context manager, or to be closed by `close`. `plan` is the Plan that was loaded."""

    def __init__(
        self,
        machine: Machine,
        name: str,
        plan: Plan,
        box: CallMailbox | None,
        held: HeldMemory | None = None,
    ) -> None:
        """Load `plan` on `machine`; `held` is memory to release at the end."""
        self.plan = plan
        self._machine = machine
        self._name = name
        self.mailbox = box
        self._held = held
        machine.load_plan(plan)

    def call(self, *args: Argument) -> CallResult:
        """Jump to the program with `args` (numbers modulo 2**64, or bytes), and return the result.

        HostError when the jump is refused; JumpError when the program faults or does not come back.
        """
        if self.mailbox is None:
            if args:
                raise UsageError(f"{self._name} is entered without a gate and takes no arguments")
            self._machine.jump()
            return CallResult(0, b"", False, 0, 0, 0, 0)
        self.mailbox.post(args)
        self._machine.jump()
        try:
            return self.mailbox.read(self._name)
        except FaultError as error:
            error.details = self._machine.report()
            raise

    def close(self) -> None:
        """Unload the program, and release its memory in A."""
        self._machine.unload(self.plan)
        if self.mailbox is not None:
            self.mailbox.release()
        if self._held is not None:
            self._held.release()

    def __enter__(self) -> Loaded:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop the program."""
        self.close()
