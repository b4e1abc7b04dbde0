"""call: one function, a flat binary or an ELF executable on the bare machine, or on an emulated one."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kjump.call.machine import Argument, CallResult, Loaded, Machine
from kjump.call.program import Arch, Preserve, Program, from_elf, from_flat, plan_bare
from kjump.cli.options import NUMBER, SIZE, plan_as_json, print_json, show_plan
from kjump.errors import HostError, JumpError, UsageError

if TYPE_CHECKING:
    from kjump.emulator.machine import EmulatedMachine

_ARCHES = {a.label: a for a in Arch}
_PRESERVE = {"fpu": Preserve.FPU, "descriptors": Preserve.DESCRIPTORS, "nothing": Preserve.NOTHING}


@dataclass(frozen=True)
class _Wanted:
    """The options of the command line, without the program and its arguments."""

    on: str
    arch: Arch
    function: str | None
    at: int | None
    preserve: Preserve
    way: str
    memory: int
    kernel: str | None
    trace: bool
    memory_map: bool
    time_limit: float


def argument(text: str) -> Argument:
    """Return the value of an argument: a number, the bytes of @FILE, or the text's own bytes (forced by `s:`)."""
    if text.startswith("s:"):
        return text[2:].encode()
    if text.startswith("@"):
        return Path(text[1:]).read_bytes()
    try:
        return int(text, 0)
    except ValueError:
        return text.encode()


def _words(text: str) -> list[str]:
    """Split the text of `--then` as a shell does; UsageError when a quote is not closed."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--then {text!r} cannot be split into words: {error}") from None


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for the machine, and for how a program is called."""
    for option in reversed(
        (
            click.option(
                "--on",
                type=click.Choice(["emulator", "host"]),
                default="emulator",
                show_default=True,
                help="host: on this very machine, which stands still meanwhile, and is lost if the program does harm.",
            ),
            click.option(
                "--arch", type=click.Choice(list(_ARCHES)), default="x86_64", show_default=True, help="Of the program."
            ),
            click.option("--function", help="Function of a C file (default: the file's name)."),
            click.option("--at", type=NUMBER, help="Physical address of a flat binary."),
            click.option(
                "--preserve", type=click.Choice(list(_PRESERVE)), multiple=True, help="What is kept for this system."
            ),
            click.option(
                "--in-memory",
                "way",
                flag_value="install",
                help="Put it into this system's memory and load a fake image.",
            ),
            click.option(
                "--bare", "way", flag_value="load_bare", help="Without a gate: the entry is the jump-back entry."
            ),
            click.option("--memory", type=SIZE, default="64M", show_default=True, help="Emulator: RAM of the machine."),
            click.option("--kernel", help="Emulator: kind of kernel (6.14, 6.12, 6.1; i386: 1.00)."),
            click.option("--trace", is_flag=True, help="Emulator: print each instruction."),
            click.option("--memory-map", is_flag=True, help="Emulator: print what was read and written."),
            click.option(
                "--time-limit", type=float, default=10.0, show_default=True, help="Emulator: seconds of a call."
            ),
        )
    ):
        command = option(command)
    return command


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("program", type=click.Path(path_type=Path))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@_options
@click.option("--then", "more", multiple=True, metavar="ARGS", help="Call again with other arguments, state kept.")
@click.option("--repeat", type=click.IntRange(1), default=1, help="Make all calls that many times.")
@click.option("--dry-run", is_flag=True, help="Show what would be loaded; load and call nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the results, or the plan, as one JSON object.")
def call_command(
    program: Path,
    args: tuple[str, ...],
    more: tuple[str, ...],
    repeat: int,
    dry_run: bool,
    as_json: bool,
    way: str | None,
    on: str,
    arch: str,
    preserve: tuple[str, ...],
    **rest: Any,
) -> None:
    """Call a program on the bare machine, or an emulated one.

    PROGRAM is a C file, an ELF executable, or a flat binary (with --at). What it returns is printed.

    On the emulated machine, unless this one is asked for (--on host).

    An ARG is a number, or a string: two arguments, address and length (@FILE: the file's bytes; s:40: not a number).
    """
    kept = Preserve.NOTHING
    for name in preserve:
        kept |= _PRESERVE[name]
    wanted = _Wanted(on=on, arch=_ARCHES[arch], preserve=kept, way=way or "load", **rest)
    found = read_program(program, wanted)
    calls = [[argument(a) for a in words] for words in (args, *map(_words, more))] * repeat
    machine, emulated = _machine(wanted, found.arch)
    if dry_run:
        _show_plan(machine, found, wanted, as_json=as_json)
        return
    try:
        done = _call_all(machine, found, wanted, calls)
    except JumpError as error:
        _print_report(error)
        raise
    finally:
        if emulated is not None:
            _print_watched(emulated, wanted)
    if as_json:
        print_json({"machine": wanted.on, "calls": [c.as_json() for c in done]})
        return
    for call in done:
        _print_result(call.result, bare=wanted.way == "load_bare")


def read_program(path: Path, wanted: Any) -> Program:
    """Return the program in a file: C by its suffix, flat with an address, else ELF."""
    try:
        if path.suffix == ".c" and path.is_file():
            from kjump.call.compiler import compile_program

            return compile_program(path, arch=wanted.arch, function=wanted.function, preserve=wanted.preserve)
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if wanted.at is not None:
        return from_flat(data, wanted.at, wanted.arch, path.name)
    return from_elf(data, path.name)


def _machine(wanted: _Wanted, arch: Arch) -> tuple[Machine, EmulatedMachine | None]:
    if wanted.on == "host":
        from kjump.call.host import HostMachine

        return HostMachine(), None
    machine = emulated_machine(wanted, arch)
    return machine, machine


def emulated_machine(wanted: _Wanted, arch: Arch) -> EmulatedMachine:
    """Return the emulated machine; UsageError when there is no such kernel, HostError when unicorn is missing."""
    try:
        from kjump.emulator.linux import DEFAULT_KERNEL, KERNELS, Setup, Watch
        from kjump.emulator.machine import EmulatedMachine
    except ModuleNotFoundError as error:
        raise HostError(f"the emulator needs {error.name}: pip install 'kjump[emulator]'") from None
    kernel = KERNELS.get(wanted.kernel or DEFAULT_KERNEL[arch])
    if kernel is None or kernel.arch is not arch:
        names = ", ".join(k.name for k in KERNELS.values() if k.arch is arch)
        raise UsageError(f"there is no emulated kernel {wanted.kernel} for {arch.label}: take {names}")
    watch = Watch(access=wanted.memory_map, trace=wanted.trace, time_limit=wanted.time_limit)
    return EmulatedMachine(Setup(kernel, wanted.memory), watch)


def _show_plan(machine: Machine, program: Program, wanted: _Wanted, *, as_json: bool) -> None:
    if wanted.way == "install":
        raise UsageError("a fake image has no segments to show")
    if wanted.way == "load_bare":
        plan = plan_bare(program)
    else:
        plan, _ = machine.prepare(program, preserve=wanted.preserve)
    if as_json:
        print_json(plan_as_json(plan))
    else:
        show_plan(plan)


def _load(machine: Machine, program: Program, wanted: _Wanted) -> Loaded:
    if wanted.way == "load_bare":
        return machine.load_bare(program)
    if wanted.way == "install":
        return machine.install(program, preserve=wanted.preserve)
    return machine.load(program, preserve=wanted.preserve)


@dataclass(frozen=True)
class _Done:
    """A call: when it began (monotonic), how long it took, in seconds, and its result."""

    began: float
    seconds: float
    result: CallResult

    def as_json(self) -> dict[str, object]:
        """Return it as a JSON object."""
        text = self.result.output.decode(errors="backslashreplace")
        return {**vars(self.result), "output": text, "began": self.began, "seconds": self.seconds}


def _call_all(machine: Machine, program: Program, wanted: _Wanted, calls: Sequence[Sequence[Argument]]) -> list[_Done]:
    """Load once and make all calls."""
    done = []
    with _load(machine, program, wanted) as loaded:
        for args in calls:
            begun = time.monotonic()
            result = loaded.call(*args)
            done.append(_Done(begun, time.monotonic() - begun, result))
    return done


def _print_result(result: CallResult, *, bare: bool) -> None:
    if result.output:
        text = result.output.decode(errors="backslashreplace")
        click.echo(text, nl=not text.endswith("\n"))
    if result.cut_off:
        click.echo("kjump: the program wrote more output than is kept", err=True)
    if not bare:
        click.echo(str(result.value))


def _print_report(error: JumpError) -> None:
    for line in getattr(error, "details", ()):
        click.echo(line, err=True)


def _print_watched(machine: EmulatedMachine, wanted: _Wanted) -> None:
    """Print the records that the options ask for, and the output of the emulated serial port."""
    from kjump.emulator import report

    linux = machine.linux
    if linux.cpu.serial:
        click.echo(linux.cpu.serial.decode(errors="backslashreplace"), nl=False, err=True)
    if wanted.trace:
        for address, code in linux.trace:
            click.echo(report.disassemble(linux, address, code, 1)[0], err=True)
    if wanted.memory_map:
        for line in report.memory_map(linux):
            click.echo(line, err=True)
