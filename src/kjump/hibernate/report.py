"""The report of a kernel that was jumped to: one type for second kernels, restoring kernels and the boot role.

It travels as JSON, in the mailbox or in the channel's answer. Fields with their default value are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kjump.errors import FormatError
from kjump.formats.record import JsonObject, Record
from kjump.formats.superblock import MemoryUse, Saved
from kjump.hibernate.clock import Moment
from kjump.kexec.mailbox import Outcome

_ADDRESS_END = 1 << 52
_NOTE_SIZE = 1 << 20
_NAME = 1024
_LINES = 1024
_SEED_SIZE = 32
_LONGEST = 1e9
"""The largest duration, in seconds, that is accepted as valid."""
_MOST_STATUS = 1 << 32


@dataclass(frozen=True)
class Stamps:
    """Time stamp counter values of a save: the gate was entered, the job began, its hook ended, the save ended."""

    entered: int
    begun: int
    hooked: int
    saved: int

    def to_json(self) -> JsonObject:
        """Return it as JSON for a report."""
        return {"entered": self.entered, "begun": self.begun, "hooked": self.hooked, "saved": self.saved}

    @classmethod
    def from_json(cls, record: Record) -> Stamps:
        """Read what `to_json` gave; FormatError."""
        return cls(*(record.integer(name) for name in ("entered", "begun", "hooked", "saved")))


@dataclass(frozen=True)
class Report:
    """The contents of a report; sizes in bytes, times in seconds.

    `reason` and `traceback` say why a job failed; `panic` and `log` are a panic's message and the log's last lines.
    `boot_seconds` is the time from the reporting kernel's start to its role, `boot_seconds_cold` the same of the boot
    kernel before it. `vmcoreinfo` is the physical address and size of the reporting kernel's VMCOREINFO note. A save
    sets `saved` and `stamps`; a restoration sets `restored_bytes` to `restore_memory` and `hook_seconds`, and counts
    the roll-backs to a snapshot in `rolled_back`. `seed` and `clock` are for the random number generator and the wall
    clock of the system that reads the report. `status`, `pid`, `output` and `cut` (characters that did not fit) are the
    result of a program. A resident kernel sets `resident` and `release`.
    """

    reason: str = ""
    traceback: str = ""
    panic: str = ""
    log: tuple[str, ...] = ()
    boot_seconds: float = 0.0
    boot_seconds_cold: float = 0.0
    vmcoreinfo: tuple[int, int] | None = None
    saved: Saved | None = None
    stamps: Stamps | None = None
    seed: bytes = b""
    clock: Moment | None = None
    restored_bytes: int = 0
    restore_seconds: float = 0.0
    restore_memory: MemoryUse | None = None
    hook_seconds: float = 0.0
    rolled_back: int = 0
    status: int | None = None
    pid: int = 0
    output: str = ""
    cut: int = 0
    resident: bool = False
    release: str = ""

    def to_json(self) -> JsonObject:
        """Return it as JSON, without the fields that have their default value."""
        found: JsonObject = {
            "reason": self.reason,
            "traceback": self.traceback,
            "panic": self.panic,
            "log": list(self.log),
            "boot_seconds": self.boot_seconds,
            "boot_seconds_cold": self.boot_seconds_cold,
            "vmcoreinfo": list(self.vmcoreinfo) if self.vmcoreinfo else None,
            "saved": self.saved.to_json() if self.saved else None,
            "stamps": self.stamps.to_json() if self.stamps else None,
            "seed": self.seed.hex(),
            "clock": self.clock.to_json() if self.clock else None,
            "restored_bytes": self.restored_bytes,
            "restore_seconds": self.restore_seconds,
            "restore_memory": self.restore_memory.to_json() if self.restore_memory else None,
            "hook_seconds": self.hook_seconds,
            "rolled_back": self.rolled_back,
            "pid": self.pid,
            "output": self.output,
            "cut": self.cut,
            "resident": self.resident,
            "release": self.release,
        }
        found = {name: value for name, value in found.items() if value}
        return found if self.status is None else found | {"status": self.status}

    @classmethod
    def from_json(cls, record: Record) -> Report:
        """Read what `to_json` gave; FormatError."""

        def seconds(name: str) -> float:
            return record.number(name, low=0, high=_LONGEST)

        def status(name: str) -> int:
            return record.integer(name, low=-_MOST_STATUS, high=_MOST_STATUS)

        return cls(
            reason=record.optional("reason", record.text, ""),
            traceback=record.optional("traceback", record.text, ""),
            panic=record.optional("panic", record.text, ""),
            log=record.texts("log", limit=_LINES) if "log" in record else (),
            boot_seconds=record.optional("boot_seconds", seconds, 0.0),
            boot_seconds_cold=record.optional("boot_seconds_cold", seconds, 0.0),
            vmcoreinfo=_note(record) if "vmcoreinfo" in record else None,
            saved=record.maybe("saved", Saved.from_json),
            stamps=record.maybe("stamps", Stamps.from_json),
            seed=record.hexadecimal("seed", length=_SEED_SIZE) if "seed" in record else b"",
            clock=record.maybe("clock", Moment.from_json),
            restored_bytes=record.optional("restored_bytes", record.integer, 0),
            restore_seconds=record.optional("restore_seconds", seconds, 0.0),
            restore_memory=record.maybe("restore_memory", MemoryUse.from_json),
            hook_seconds=record.optional("hook_seconds", seconds, 0.0),
            rolled_back=record.optional("rolled_back", record.integer, 0),
            status=status("status") if "status" in record else None,
            pid=record.optional("pid", record.integer, 0),
            output=record.optional("output", record.text, ""),
            cut=record.optional("cut", record.integer, 0),
            resident=record.optional("resident", record.flag, False),
            release=record.text("release", limit=_NAME) if "release" in record else "",
        )


def _note(record: Record) -> tuple[int, int]:
    found = record.integers("vmcoreinfo", limit=2)
    if len(found) != 2 or found[0] >= _ADDRESS_END or found[1] > _NOTE_SIZE:
        raise FormatError(f"{record.what}: vmcoreinfo is {list(found)}, not the address and size of a note")
    return found[0], found[1]


def received(read: Callable[[], tuple[Outcome, JsonObject]]) -> tuple[Outcome, Report]:
    """Return the outcome and the report that `read` finds.

    If `read` or the report's contents are damaged, the outcome is NONE, since nothing in a damaged mailbox can be
    relied on, and the report's `reason` says what is wrong.
    """
    try:
        outcome, found = read()
        return outcome, Report.from_json(Record(found, "the second kernel's report"))
    except FormatError as error:
        return Outcome.NONE, Report(reason=str(error))
