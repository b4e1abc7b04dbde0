"""The jobs of a kernel that is jumped to: one type for each job, and the assignment that carries it.

An assignment travels as JSON: in the initramfs of a kernel that is booted for it, in the channel to a resident one.
`do` names the job; the job's own fields are in the same object.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from kjump.errors import UsageError
from kjump.formats.record import JsonObject, Record
from kjump.hibernate.report import Report
from kjump.host.kernel_memory import FreePages
from kjump.image.facts import ADDRESS_END, Hook, Kind, SystemFacts
from kjump.ranges import Range
from kjump.target.device import Place
from kjump.target.states import Departure, Mounted

WHAT = "the job"
"""The name of an assignment in messages."""
_COOKIE = 16
_LONGEST = 1e9
_MOST_RANGES = 1 << 16
_MOST_FILE_SYSTEMS = 4096
_MOST_WORDS = 4096
_MOST_LEVEL = 1 << 20
_MOST_WATCHDOG = 1 << 16
_SEED_SIZE = 32
_FAULT = 256


class Then(StrEnum):
    """What a second kernel does after it has saved."""

    POWER_OFF = "power-off"
    BACK = "back"


@dataclass(frozen=True)
class SaveJob:
    """Save the parked system to the target with this `cookie`.

    `ram` is the system's RAM (physical ranges, bytes), `free_pages` what it expects free pages to contain, `level` a
    zstd level, `dump_level` as for `kjump dump --level`. `departure` may come with the job, or later in the mailbox.
    `fault` provokes a failure, for tests.
    """

    NAME: ClassVar[str] = "save"
    kind: Kind
    then: Then
    target: Place
    cookie: bytes
    system: SystemFacts
    file_systems: tuple[Mounted, ...]
    ram: tuple[Range, ...]
    free_pages: FreePages
    level: int
    dump_level: int | None = None
    hook: Hook | None = None
    departure: Departure | None = None
    fault: str = ""

    def to_json(self) -> JsonObject:
        """Return its fields as JSON."""
        return {
            "kind": self.kind.value,
            "then": self.then.value,
            "target": self.target.to_json(),
            "cookie": self.cookie.hex(),
            "system": self.system.to_json(),
            "file_systems": [item.to_json() for item in self.file_systems],
            "ram": [[r.start, r.end] for r in self.ram],
            "free_pages": self.free_pages.value,
            "level": self.level,
            "dump_level": self.dump_level,
            "hook": self.hook.to_json() if self.hook else None,
            "departure": self.departure.to_json() if self.departure else None,
            "fault": self.fault,
        }

    @classmethod
    def from_json(cls, record: Record) -> SaveJob:
        """Read what `to_json` gave; FormatError."""
        return cls(
            kind=record.choice("kind", Kind),
            then=record.choice("then", Then),
            target=record.map("target", Place.from_json),
            cookie=record.hexadecimal("cookie", length=_COOKIE),
            system=record.map("system", SystemFacts.from_json),
            file_systems=tuple(
                Mounted.from_json(item) for item in record.items("file_systems", limit=_MOST_FILE_SYSTEMS)
            ),
            ram=record.ranges("ram", limit=_MOST_RANGES),
            free_pages=record.choice("free_pages", FreePages),
            level=record.integer("level", low=-_MOST_LEVEL, high=_MOST_LEVEL),
            dump_level=record.integer("dump_level", high=31) if "dump_level" in record else None,
            hook=record.maybe("hook", Hook.from_json),
            departure=record.maybe("departure", Departure.from_json),
            fault=record.text("fault", limit=_FAULT),
        )


@dataclass(frozen=True)
class LookJob:
    """Run `kjump peer` with the arguments `argv` on the parked system's memory."""

    NAME: ClassVar[str] = "peer"
    argv: tuple[str, ...]

    def to_json(self) -> JsonObject:
        """Return its fields as JSON."""
        return {"argv": list(self.argv)}

    @classmethod
    def from_json(cls, record: Record) -> LookJob:
        """Read what `to_json` gave; FormatError."""
        return cls(record.texts("argv", limit=_MOST_WORDS))


@dataclass(frozen=True)
class CommandJob:
    """Run the command `argv`; with `background` do not wait for its end."""

    NAME: ClassVar[str] = "command"
    argv: tuple[str, ...]
    background: bool = False

    def to_json(self) -> JsonObject:
        """Return its fields as JSON."""
        return {"argv": list(self.argv), "background": self.background}

    @classmethod
    def from_json(cls, record: Record) -> CommandJob:
        """Read what `to_json` gave; FormatError."""
        return cls(record.texts("argv", limit=_MOST_WORDS), record.flag("background"))


@dataclass(frozen=True)
class ShellJob:
    """Run a shell on the console."""

    NAME: ClassVar[str] = "shell"

    def to_json(self) -> JsonObject:
        """Return its fields as JSON: there are none."""
        return {}

    @classmethod
    def from_json(cls, record: Record) -> ShellJob:
        """Read what `to_json` gave."""
        return cls()


@dataclass(frozen=True)
class NoJob:
    """Come back at once."""

    NAME: ClassVar[str] = "none"

    def to_json(self) -> JsonObject:
        """Return its fields as JSON: there are none."""
        return {}

    @classmethod
    def from_json(cls, record: Record) -> NoJob:
        """Read what `to_json` gave."""
        return cls()


@dataclass(frozen=True)
class RestoreJob:
    """Restore the image of this `kind` on the target with this `cookie`; `report` is for the restored system."""

    NAME: ClassVar[str] = "restore"
    kind: Kind
    target: Place
    cookie: bytes
    report: Report

    def to_json(self) -> JsonObject:
        """Return its fields as JSON."""
        return {
            "kind": self.kind.value,
            "target": self.target.to_json(),
            "cookie": self.cookie.hex(),
            "report": self.report.to_json(),
        }

    @classmethod
    def from_json(cls, record: Record) -> RestoreJob:
        """Read what `to_json` gave; FormatError."""
        return cls(
            record.choice("kind", Kind),
            record.map("target", Place.from_json),
            record.hexadecimal("cookie", length=_COOKIE),
            record.map("report", Report.from_json),
        )


Job = SaveJob | LookJob | CommandJob | ShellJob | NoJob | RestoreJob
_TYPES: tuple[type[Job], ...] = (SaveJob, LookJob, CommandJob, ShellJob, NoJob, RestoreJob)


class _Name(StrEnum):
    SAVE = SaveJob.NAME
    LOOK = LookJob.NAME
    COMMAND = CommandJob.NAME
    SHELL = ShellJob.NAME
    NONE = NoJob.NAME
    RESTORE = RestoreJob.NAME


@dataclass(frozen=True)
class Assignment:
    """A job, with its limits and what the kernel that does it must know.

    `gate` is the physical address of the gate, 0 where that is known otherwise. The job may take `time_limit` seconds
    (0: no limit); the machine's watchdog is set to `watchdog` seconds (0: not used). `seed` is entropy for the random
    number generator of the kernel that does the job.
    """

    job: Job = NoJob()
    gate: int = 0
    time_limit: float = 0.0
    watchdog: int = 0
    seed: bytes = b""

    def to_json(self) -> JsonObject:
        """Return it as one JSON object."""
        return self.job.to_json() | {
            "do": self.job.NAME,
            "gate": self.gate,
            "time_limit": self.time_limit,
            "watchdog": self.watchdog,
            "seed": self.seed.hex(),
        }

    @classmethod
    def from_json(cls, record: Record) -> Assignment:
        """Read what `to_json` gave; FormatError, also for a job that is not known."""
        name = record.choice("do", _Name)
        job = next(kind for kind in _TYPES if name == kind.NAME)
        seed = record.hexadecimal("seed")
        return cls(
            job.from_json(record),
            record.integer("gate", high=ADDRESS_END - 1),
            record.number("time_limit", low=0, high=_LONGEST),
            record.integer("watchdog", high=_MOST_WATCHDOG),
            record.hexadecimal("seed", length=_SEED_SIZE) if seed else b"",
        )

    def checked(self) -> JsonObject:
        """Return it as JSON, after reading that back; FormatError when the other side would refuse it."""
        found = self.to_json()
        Assignment.from_json(Record(found, WHAT))
        return found

    def encode(self) -> bytes:
        """Return the contents of its file in an initramfs; FormatError when the other side would refuse it."""
        return json.dumps(self.checked()).encode()

    @classmethod
    def decode(cls, text: bytes, what: str = WHAT) -> Assignment:
        """Read what `encode` gave; FormatError, in which the assignment is named `what`."""
        return cls.from_json(Record.parse(text, what))


def job_called(name: str, argv: tuple[str, ...], *, background: bool = False) -> Job:
    """Return the job that users call `name`, with its arguments `argv`; UsageError when there is no such job."""
    plain: dict[str, Job] = {
        NoJob.NAME: NoJob(),
        ShellJob.NAME: ShellJob(),
        CommandJob.NAME: CommandJob(argv, background),
        LookJob.NAME: LookJob(argv),
    }
    if name not in plain:
        raise UsageError(f"there is no job called {name}; there are {', '.join(sorted(plain))}")
    return plain[name]
