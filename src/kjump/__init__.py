"""Leave a running Linux, run something else on the bare machine, and come back.

What scripts may rely on is what `import kjump` gives; each name is imported when it is first asked for. Everything else
in this package may change from one version to the next. docs/api.md has examples.

Dumps: `open_dump` opens whatever holds a kernel's memory, as a `Source`: memory is read by physical address, and
through `Source.layout` by the kernel's own addresses. `summarize_dump` says what is in it, `select_pages` which pages
are worth keeping (`PageClass` are their kinds), `write_dump` writes a `DumpRequest` in a `DumpFormat`.

Programs: `compile_program`, `program_from_elf` and `program_from_flat` make a `Program`, for an `Arch`.
`EmulatedMachine` and `HostMachine` load and call it, and return a `CallResult`. `Preserve` says what is kept for the
caller.

Loading: `plan_kernel` and `make_plan` (of `Segment`s) decide everything as a `Plan`; `load` gives it to the running
kernel, `jump` goes there, `unload` drops it, `is_loaded` asks for it.

This system: `checks` looks at what a hibernation needs, as `Check`s. `hibernate_system` and `take_snapshot` save the
system as an `ImageRequest` says; `roll_back` goes back to a snapshot on a target that `open_target` opens.

Ranges: `Range` and `RangeSet` are half-open ranges of addresses, in bytes.

Errors: all derive from `KjumpError`, and their text is one sentence for people: `UsageError`, `FormatError`,
`PlanError`, `HostError`, `TargetError`, `ImageError`, `JumpError` and, when an exception ended a program, `FaultError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kjump.call.compiler import compile_program
    from kjump.call.host import HostMachine
    from kjump.call.machine import CallResult, FaultError
    from kjump.call.program import Arch, Preserve, Program
    from kjump.call.program import from_elf as program_from_elf
    from kjump.call.program import from_flat as program_from_flat
    from kjump.dump.classes import PageClass
    from kjump.dump.create import Format as DumpFormat
    from kjump.dump.create import Request as DumpRequest
    from kjump.dump.create import dump as write_dump
    from kjump.dump.opening import open_source as open_dump
    from kjump.dump.selection import select_level as select_pages
    from kjump.dump.source import Source
    from kjump.dump.summary import summarize as summarize_dump
    from kjump.emulator.machine import EmulatedMachine
    from kjump.errors import (
        FormatError,
        HostError,
        ImageError,
        JumpError,
        KjumpError,
        PlanError,
        TargetError,
        UsageError,
    )
    from kjump.hibernate.preflight import Check, checks
    from kjump.hibernate.rollback import rollback as roll_back
    from kjump.hibernate.snapshot import snapshot as take_snapshot
    from kjump.hibernate.suspend import TripRequest as ImageRequest
    from kjump.hibernate.suspend import hibernate as hibernate_system
    from kjump.kexec.plan import Plan, Segment, make_plan
    from kjump.kexec.second_kernel import plan_kernel
    from kjump.kexec.syscalls import is_loaded, jump, load, unload
    from kjump.ranges import Range, RangeSet
    from kjump.target.file import open_for_image as open_target

_HOMES = {
    "Arch": "kjump.call.program",
    "CallResult": "kjump.call.machine",
    "Check": "kjump.hibernate.preflight",
    "DumpFormat": "kjump.dump.create:Format",
    "DumpRequest": "kjump.dump.create:Request",
    "EmulatedMachine": "kjump.emulator.machine",
    "FaultError": "kjump.call.machine",
    "FormatError": "kjump.errors",
    "HostError": "kjump.errors",
    "HostMachine": "kjump.call.host",
    "ImageError": "kjump.errors",
    "ImageRequest": "kjump.hibernate.suspend:TripRequest",
    "JumpError": "kjump.errors",
    "KjumpError": "kjump.errors",
    "PageClass": "kjump.dump.classes",
    "Plan": "kjump.kexec.plan",
    "PlanError": "kjump.errors",
    "Preserve": "kjump.call.program",
    "Program": "kjump.call.program",
    "Range": "kjump.ranges",
    "RangeSet": "kjump.ranges",
    "Segment": "kjump.kexec.plan",
    "Source": "kjump.dump.source",
    "TargetError": "kjump.errors",
    "UsageError": "kjump.errors",
    "checks": "kjump.hibernate.preflight",
    "compile_program": "kjump.call.compiler",
    "hibernate_system": "kjump.hibernate.suspend:hibernate",
    "is_loaded": "kjump.kexec.syscalls",
    "jump": "kjump.kexec.syscalls",
    "load": "kjump.kexec.syscalls",
    "make_plan": "kjump.kexec.plan",
    "open_dump": "kjump.dump.opening:open_source",
    "open_target": "kjump.target.file:open_for_image",
    "plan_kernel": "kjump.kexec.second_kernel",
    "program_from_elf": "kjump.call.program:from_elf",
    "program_from_flat": "kjump.call.program:from_flat",
    "roll_back": "kjump.hibernate.rollback:rollback",
    "select_pages": "kjump.dump.selection:select_level",
    "summarize_dump": "kjump.dump.summary:summarize",
    "take_snapshot": "kjump.hibernate.snapshot:snapshot",
    "unload": "kjump.kexec.syscalls",
    "write_dump": "kjump.dump.create:dump",
}
"""Where each name of the interface is: its module, and its name there when that is another.

The imports above say the same to type checkers; a test compares them.
"""

__all__ = [
    "Arch",
    "CallResult",
    "Check",
    "DumpFormat",
    "DumpRequest",
    "EmulatedMachine",
    "FaultError",
    "FormatError",
    "HostError",
    "HostMachine",
    "ImageError",
    "ImageRequest",
    "JumpError",
    "KjumpError",
    "PageClass",
    "Plan",
    "PlanError",
    "Preserve",
    "Program",
    "Range",
    "RangeSet",
    "Segment",
    "Source",
    "TargetError",
    "UsageError",
    "checks",
    "compile_program",
    "hibernate_system",
    "is_loaded",
    "jump",
    "load",
    "make_plan",
    "open_dump",
    "open_target",
    "plan_kernel",
    "program_from_elf",
    "program_from_flat",
    "roll_back",
    "select_pages",
    "summarize_dump",
    "take_snapshot",
    "unload",
    "write_dump",
]


def __getattr__(name: str) -> Any:
    """Import what the interface has under `name` (PEP 562); `__version__` is that of the installed package."""
    if name == "__version__":
        from importlib.metadata import version

        return version("kjump")
    if name not in _HOMES:
        raise AttributeError(f"module 'kjump' has no attribute {name!r}")
    import importlib

    module, _, inner = _HOMES[name].partition(":")
    found = getattr(importlib.import_module(module), inner or name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
