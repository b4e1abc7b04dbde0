"""Calls on the bare machine, tried on a real kernel: the same programs as on the emulator, with the same outcome.

A Linux at work calls them by kexec jump: one call each, many in a row with kept state, code in its own memory through
a fake image, a program that faults, and the BIOS. Nothing of its work may suffer.
"""

from __future__ import annotations

import base64
import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kjump
from kjump.call.compiler import compiled
from kjump.call.machine import Argument
from kjump.call.program import Arch, Preserve, from_elf
from kjump.emulator.linux import DEFAULT_KERNEL, KERNELS, Setup
from kjump.emulator.machine import EmulatedMachine
from kjump.errors import LabError
from kjump.lab import same_plan
from kjump.lab.checks import Checked
from kjump.lab.hibernation import start_workload, verify_workload
from kjump.lab.machine import kernel as kernels
from kjump.lab.machine.qemu import Guest, Machine
from kjump.lab.machine.scene import Hardware, Scene

_FOLDER = "/root"
_NOT_CANONICAL = 1 << 63
_GRAPHICS = ("-device", "VGA")
_ROOT_DISK_SECTORS = "/sys/block/vda/size"


@dataclass(frozen=True)
class Step:
    """A program of examples/ to call with `args` (as on the command line), on both machines."""

    program: str
    args: tuple[int | str, ...]
    preserve: Preserve = Preserve.NOTHING

    @property
    def values(self) -> list[Argument]:
        """The arguments as `Loaded.call` takes them."""
        return [a if isinstance(a, int) else a.encode() for a in self.args]


STEPS = (
    Step("add", (2, 40)),
    Step("upper", ("kexec jump",)),
    Step("mean", (1, 2, 4), Preserve.FPU),
    Step("memtest", (0x800000, 0x4000)),
    Step("counter", (5, 6, 7), Preserve.FPU | Preserve.DESCRIPTORS),
)
"""What gives the same result on any machine."""


@dataclass
class CallDemo(Checked):
    """What the calls came to; `latency` in seconds, `checks` by name."""

    kernel: str
    memory_bytes: int
    calls: int = 0
    latency: dict[str, float] = field(default_factory=dict)
    checks: dict[str, bool] = field(default_factory=dict)


def examples() -> Path:
    """Return the folder of example programs: of the package, or of the source tree it lies in."""
    package = Path(kjump.__file__).parent
    for folder in (package / "examples", package.parents[1] / "examples"):
        if folder.is_dir():
            return folder
    raise LabError("the example programs are not installed")


def run(
    folder: Path,
    *,
    version: str,
    hardware: Hardware,
    calls: int = 100,
    tell: Callable[[str], None] = lambda _: None,
) -> CallDemo:
    """Make all calls in a machine whose disk lies in `folder`, `calls` of them in a row; LabError when one fails."""
    kernel = kernels.build(version)
    tell("making the disk")
    scene = Scene(folder, kernel, hardware, target_size=1 << 20).prepare()
    demo = CallDemo(kernel.release, hardware.memory)
    with scene.machine(extra=_GRAPHICS) as machine:
        machine.guest.event("ready", timeout=120)
        tell("starting A's work")
        demo.checks["workload_before"] = all(start_workload(machine.guest, 0)["checks"].values())
        for part, what in (
            (_same_outcome, "calling each program here and there"),
            (_one_plan, "loading the kernel's own Plan on the emulated machine"),
            (_many, f"{calls} calls in a row"),
            (_fake_image, "calling code in A's own memory"),
            (_fault, "calling a program that faults"),
            (_bios, "asking the BIOS for the memory map, the disk and the graphics card"),
        ):
            tell(what)
            demo.calls = calls
            part(machine.guest, demo)
        tell("looking at A's work")
        demo.checks |= {f"workload_{n}": good for n, good in verify_workload(machine.guest)["checks"].items()}
        _switch_off(machine, demo)
    demo.checks["disk"] = scene.check_root_disk()[0]
    return demo


def _switch_off(machine: Machine, demo: CallDemo) -> None:
    machine.guest.start("python3", "-c", "from kjump.lab.guest.agent import power_off; power_off()")
    demo.checks["powered_off"] = machine.wait_off() == "guest-shutdown"


def _executable(step: Step) -> bytes:
    return compiled(examples() / f"{step.program}.c", Arch.X86_64, step.program, step.preserve)


def _send(guest: Guest, step: Step) -> str:
    """Bring the program into the guest, which has no compiler; return its path there."""
    path = f"{_FOLDER}/{step.program}.elf"
    script = "import base64,pathlib,sys; pathlib.Path(sys.argv[1]).write_bytes(base64.b64decode(sys.argv[2]))"
    guest.run("python3", "-c", script, path, base64.b64encode(_executable(step)).decode())
    return path


def _options(step: Step) -> Iterable[str]:
    for name, flag in (("fpu", Preserve.FPU), ("descriptors", Preserve.DESCRIPTORS)):
        if flag in step.preserve:
            yield from ("--preserve", name)


def call_in_guest(guest: Guest, step: Step, *more: str) -> list[dict[str, Any]]:
    """Return the calls that `kjump call` makes on the guest's kernel, as its JSON has them."""
    command = ["kjump", "call", "--on", "host", "--json", *_options(step), *more, _send(guest, step)]
    reply = guest.run(*command, *map(str, step.args), timeout=600)
    found: list[dict[str, Any]] = json.loads(reply.stdout)["calls"]
    return found


def call_emulated(step: Step) -> dict[str, Any]:
    """Return value and output of the same call on an emulated machine."""
    machine = EmulatedMachine(Setup(KERNELS[DEFAULT_KERNEL[Arch.X86_64]]))
    with machine.load(from_elf(_executable(step), step.program), preserve=step.preserve) as loaded:
        result = loaded.call(*step.values)
    return {"value": result.value, "output": result.output.decode()}


def _same_outcome(guest: Guest, demo: CallDemo) -> None:
    for step in STEPS:
        (there,) = call_in_guest(guest, step)
        here = call_emulated(step)
        demo.checks[f"same_{step.program}"] = all(there[name] == here[name] for name in here)


def _one_plan(guest: Guest, demo: CallDemo) -> None:
    """The Plan that the kernel takes, byte for byte, on the emulated machine: same result."""
    step = Step("upper", ("one plan",))
    reply = guest.run("python3", "-m", "kjump.lab.same_plan", _send(guest, step), *map(str, step.args))
    run = same_plan.KernelRun.decode(reply.stdout)
    result = same_plan.replay(run, demo.memory_bytes)
    demo.checks["one_plan"] = (result.value, result.output) == (run.value, run.output) == (8, b"ONE PLAN")


def _many(guest: Guest, demo: CallDemo) -> None:
    done = call_in_guest(guest, Step("counter", (1,)), "--repeat", str(demo.calls))
    demo.checks["state_kept"] = [c["value"] for c in done] == list(range(1, demo.calls + 1))
    seconds = sorted(c["seconds"] for c in done)
    demo.latency = {
        "min": seconds[0],
        "median": statistics.median(seconds),
        "p95": seconds[int(0.95 * (len(seconds) - 1))],
        "max": seconds[-1],
        "ours_median": statistics.median(ours(done)),
    }


def ours(done: list[dict[str, Any]]) -> list[float]:
    """Return for each call the seconds from the gate's entry to the function's end, by the CPU's time stamps.

    The rate of the time stamp comes from the calls themselves; the rest of a call is the kernel's.
    """
    if len(done) < 2:
        return [0.0 for _ in done]
    first, last = done[0], done[-1]
    rate = (last["tsc_in"] - first["tsc_in"]) / (last["began"] - first["began"])
    return [(c["tsc_end"] - c["tsc_in"]) / rate for c in done]


def _fake_image(guest: Guest, demo: CallDemo) -> None:
    (done,) = call_in_guest(guest, Step("add", (3, 4)), "--in-memory")
    demo.checks["fake_image"] = done["value"] == 7


def _fault(guest: Guest, demo: CallDemo) -> None:
    path = _send(guest, Step("memhash", ()))
    reply = guest.run("kjump", "call", "--on", "host", path, hex(_NOT_CANONICAL), "8", check=False)
    sentence = "was ended by a general protection fault (13)"
    demo.checks["fault_reported"] = reply.status == 1 and sentence in reply.stderr


def _bios(guest: Guest, demo: CallDemo) -> None:
    from_bios = json.loads(guest.run("kjump", "bios", "e820", "--json").stdout)
    script = (
        "import json; from kjump.host.procfs import firmware_memory_map as f; "
        "print(json.dumps([{'start': e.range.start, 'end': e.range.end, 'type': e.type_name} for e in f()]))"
    )
    from_kernel = json.loads(guest.run("python3", "-c", script).stdout)
    demo.checks["bios_memory_map"] = bool(from_kernel) and from_bios == from_kernel
    drive = json.loads(guest.run("kjump", "bios", "edd", "--json").stdout)
    demo.checks["bios_disk"] = drive["sectors"] == int(guest.run("cat", _ROOT_DISK_SECTORS).stdout)
    card = json.loads(guest.run("kjump", "bios", "vbe-info", "--json").stdout)
    demo.checks["bios_graphics"] = card["signature"] == "VESA" and len(card["modes"]) > 0
