"""Demonstrates calls on a real kernel: the same programs as on the emulator, with the same results.

A system with a workload calls them by kexec jump: each program once, many calls in a row with kept state, code in its
own memory through a fake image, a program that faults, and the BIOS. The workload must not be disturbed.
"""

from __future__ import annotations

import base64
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import kjump
from kjump.call.compiler import compiled
from kjump.call.machine import Argument
from kjump.call.program import Arch, Preserve, from_elf
from kjump.emulator.linux import DEFAULT_KERNEL, KERNELS, Setup
from kjump.emulator.machine import EmulatedMachine
from kjump.errors import LabError
from kjump.formats.record import Record
from kjump.lab import plan_replay
from kjump.lab.checks import Checked, Tell, silent
from kjump.lab.hibernation import start_workload, verify_workload
from kjump.lab.machine import kernel_source as kernels
from kjump.lab.machine.guest_channel import CommandReply, GuestChannel
from kjump.lab.machine.installation import Hardware, Installation
from kjump.lab.reports import CallReport

_FOLDER = "/root"
_NOT_CANONICAL = 1 << 63
_GRAPHICS = ("-device", "VGA")
_ROOT_DISK_SECTORS = "/sys/block/vda/size"


@dataclass(frozen=True)
class ExampleCall:
    """A program of examples/ to call with `args` (as on the command line), on both machines."""

    program: str
    args: tuple[int | str, ...]
    preserve: Preserve = Preserve.NOTHING

    @property
    def values(self) -> list[Argument]:
        """The arguments as `Loaded.call` takes them."""
        return [a if isinstance(a, int) else a.encode() for a in self.args]


EXAMPLE_CALLS = (
    ExampleCall("add", (2, 40)),
    ExampleCall("upper", ("kexec jump",)),
    ExampleCall("mean", (1, 2, 4), Preserve.FPU),
    ExampleCall("memtest", (0x800000, 0x4000)),
    ExampleCall("counter", (5, 6, 7), Preserve.FPU | Preserve.DESCRIPTORS),
)
"""Calls that have the same result on every machine."""


@dataclass(frozen=True)
class CallDemo(Checked):
    """The result of the calls; `latency` in seconds, `checks` by name."""

    kernel: str
    memory_bytes: int
    calls: int
    latency: dict[str, float]
    checks: dict[str, bool]


def examples() -> Path:
    """Return the folder of example programs, in the package or in its source tree."""
    package = Path(kjump.__file__).parent
    for folder in (package / "examples", package.parents[1] / "examples"):
        if folder.is_dir():
            return folder
    raise LabError("the example programs are not installed")


def run(folder: Path, *, version: str, hardware: Hardware, calls: int = 100, tell: Tell = silent) -> CallDemo:
    """Make all calls in a machine whose disk lies in `folder`, `calls` of them in a row; LabError when one fails."""
    kernel = kernels.build(version)
    tell("making the disk")
    system = Installation(folder, kernel, hardware, target_size=1 << 20).prepare()
    checks: dict[str, bool] = {}
    with system.machine(extra=_GRAPHICS) as machine:
        guest = machine.guest
        guest.event("ready", timeout=120)
        tell("starting the workload")
        checks["workload_before"] = start_workload(guest, 0).ok
        tell("calling each program here and there")
        checks |= _same_outcome(guest)
        tell("loading the kernel's own Plan on the emulated machine")
        checks["one_plan"] = _one_plan(guest, hardware.memory)
        tell(f"{calls} calls in a row")
        done = call_in_guest(guest, ExampleCall("counter", (1,)), "--repeat", str(calls))
        checks["state_kept"] = [c.value for c in done] == list(range(1, calls + 1))
        tell("calling code in the guest's own memory")
        checks["fake_image"] = _fake_image(guest)
        tell("calling a program that faults")
        checks["fault_reported"] = _fault(guest)
        tell("asking the BIOS for the memory map, the disk and the graphics card")
        checks |= _bios(guest)
        tell("checking the workload")
        checks |= {f"workload_{name}": good for name, good in verify_workload(guest).checks.items()}
        checks["powered_off"] = machine.power_off() == "guest-shutdown"
    checks["disk"] = system.check_root_disk()[0]
    return CallDemo(kernel.release, hardware.memory, calls, _latency(done), checks)


def _executable(call: ExampleCall) -> bytes:
    return compiled(examples() / f"{call.program}.c", Arch.X86_64, call.program, call.preserve)


def _send(guest: GuestChannel, call: ExampleCall) -> str:
    """Copy the compiled program into the guest, which has no compiler; return its path there."""
    path = f"{_FOLDER}/{call.program}.elf"
    script = "import base64,pathlib,sys; pathlib.Path(sys.argv[1]).write_bytes(base64.b64decode(sys.argv[2]))"
    guest.run("python3", "-c", script, path, base64.b64encode(_executable(call)).decode())
    return path


def _options(call: ExampleCall) -> Iterable[str]:
    for name, flag in (("fpu", Preserve.FPU), ("descriptors", Preserve.DESCRIPTORS)):
        if flag in call.preserve:
            yield from ("--preserve", name)


def call_in_guest(guest: GuestChannel, call: ExampleCall, *more: str) -> list[CallReport]:
    """Return the calls that `kjump call` makes on the guest's kernel."""
    command = ["kjump", "call", "--on", "host", "--json", *_options(call), *more, _send(guest, call)]
    reply = guest.run(*command, *map(str, call.args), timeout=600)
    return [CallReport.from_json(record) for record in reply.record("kjump call").items("calls")]


def call_emulated(call: ExampleCall) -> tuple[int, str]:
    """Return value and output of the same call on an emulated machine."""
    machine = EmulatedMachine(Setup(KERNELS[DEFAULT_KERNEL[Arch.X86_64]]))
    with machine.load(from_elf(_executable(call), call.program), preserve=call.preserve) as loaded:
        result = loaded.call(*call.values)
    return result.value, result.output.decode()


def _same_outcome(guest: GuestChannel) -> dict[str, bool]:
    """Make each call on both machines; return for each whether the outcome is the same."""
    checks = {}
    for call in EXAMPLE_CALLS:
        (there,) = call_in_guest(guest, call)
        checks[f"same_{call.program}"] = (there.value, there.output) == call_emulated(call)
    return checks


def _one_plan(guest: GuestChannel, memory: int) -> bool:
    """Tell whether the Plan that the kernel loads has the same result, byte for byte, on the emulated machine."""
    call = ExampleCall("upper", ("one plan",))
    reply = guest.run("python3", "-m", "kjump.lab.plan_replay", _send(guest, call), *map(str, call.args))
    run = plan_replay.KernelRun.from_json(reply.record("the run of a Plan"))
    result = plan_replay.replay(run, memory)
    return (result.value, result.output) == (run.value, run.output) == (8, b"ONE PLAN")


def _latency(done: Sequence[CallReport]) -> dict[str, float]:
    """Return statistics of the calls' durations in seconds."""
    seconds = sorted(c.seconds for c in done)
    return {
        "min": seconds[0],
        "median": statistics.median(seconds),
        "p95": seconds[int(0.95 * (len(seconds) - 1))],
        "max": seconds[-1],
        "ours_median": statistics.median(ours(done)),
    }


def ours(done: Sequence[CallReport]) -> list[float]:
    """Return for each call the seconds from the gate's entry to the function's end, by the CPU's time stamps.

    The rate of the time stamp counter is computed from the calls themselves. The rest of a call's time is the kernel's.
    """
    if len(done) < 2:
        return [0.0 for _ in done]
    first, last = done[0], done[-1]
    rate = (last.tsc_in - first.tsc_in) / (last.began - first.began)
    return [(c.tsc_end - c.tsc_in) / rate for c in done]


def _fake_image(guest: GuestChannel) -> bool:
    (done,) = call_in_guest(guest, ExampleCall("add", (3, 4)), "--in-memory")
    return done.value == 7


def _fault(guest: GuestChannel) -> bool:
    path = _send(guest, ExampleCall("memhash", ()))
    reply = guest.run("kjump", "call", "--on", "host", path, hex(_NOT_CANONICAL), "8", check=False)
    return reply.status == 1 and "was ended by a general protection fault (13)" in reply.stderr


_FIRMWARE_MAP = """
import json
from kjump.host.procfs import firmware_memory_map
print(json.dumps([{"start": e.range.start, "end": e.range.end, "type": e.type_name} for e in firmware_memory_map()]))
"""


def _memory_map(reply: CommandReply) -> list[tuple[int, int, str]]:
    """Return the start, end and type of each range in a memory map that a command printed."""
    entries = Record.parse(f'{{"entries": {reply.stdout}}}', "a memory map").items("entries")
    return [(e.integer("start"), e.integer("end"), e.text("type")) for e in entries]


def _bios(guest: GuestChannel) -> dict[str, bool]:
    from_bios = _memory_map(guest.run("kjump", "bios", "e820", "--json"))
    from_kernel = _memory_map(guest.run("python3", "-c", _FIRMWARE_MAP))
    drive = guest.run("kjump", "bios", "edd", "--json").record("kjump bios edd")
    card = guest.run("kjump", "bios", "vbe-info", "--json").record("kjump bios vbe-info")
    return {
        "bios_memory_map": bool(from_kernel) and from_bios == from_kernel,
        "bios_disk": drive.integer("sectors") == int(guest.run("cat", _ROOT_DISK_SECTORS).stdout),
        "bios_graphics": card.text("signature") == "VESA" and len(card.integers("modes")) > 0,
    }
