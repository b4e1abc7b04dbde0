"""The output of kjump's commands with `--json`, parsed and checked as far as the lab uses it."""

from __future__ import annotations

from dataclasses import dataclass

from kjump.formats.record import Record


@dataclass(frozen=True)
class SavedBytes:
    """Sizes in bytes: of the memory that was saved, and of the image on the target."""

    kept: int
    image: int

    @classmethod
    def from_json(cls, record: Record) -> SavedBytes:
        """Read them from a second kernel's report of its save; FormatError."""
        return cls(kept=record.integer("kept_bytes"), image=record.integer("image_bytes"))


def _saved(report: Record) -> SavedBytes | None:
    return SavedBytes.from_json(report.record("saved")) if "saved" in report else None


def numbers(record: Record) -> dict[str, float]:
    """Return all fields of a record of numbers; FormatError when one is something else."""
    return {name: record.number(name) for name in record.names()}


@dataclass(frozen=True)
class HibernateReport:
    """The output of `kjump hibernate --json`: sizes in bytes, times in seconds.

    `prepare` is the time before the jump; `again` the time until a second kernel stood by again. `saved` is None when
    nothing was saved.
    """

    resumed: bool
    window_bytes: int
    prepare: float
    again: float
    saved: SavedBytes | None

    @classmethod
    def from_json(cls, record: Record) -> HibernateReport:
        """Read what the command printed; FormatError."""
        phases = record.record("phases")
        return cls(
            resumed=record.flag("resumed"),
            window_bytes=record.integer("window_bytes"),
            prepare=phases.number("prepare", low=0),
            again=phases.number("again", low=0),
            saved=_saved(record.record("report")),
        )


@dataclass(frozen=True)
class SnapshotReport:
    """The output of `kjump snapshot --json`, after the snapshot and after each roll-back to it.

    `count` is the number of roll-backs so far; `kind` is "snapshot" or "dump"; `phases`, and `pause`, which is one of
    them, are in seconds. `entered` is the time stamp counter at the entry of the second kernel. After a roll-back
    `pause` and `entered` are 0, and there is no `saved`.
    """

    taken: bool
    rolled_back: bool
    count: int
    kind: str
    target: str
    phases: dict[str, float]
    pause: float
    entered: int
    saved: SavedBytes | None

    @classmethod
    def from_json(cls, record: Record) -> SnapshotReport:
        """Read what the command printed; FormatError."""
        phases, stamps = record.record("phases"), record.record("stamps")
        return cls(
            taken=record.flag("taken"),
            rolled_back=record.flag("rolled_back"),
            count=record.integer("count"),
            kind=record.text("kind"),
            target=record.text("target"),
            phases=numbers(phases),
            pause=phases.optional("pause", phases.number, 0.0),
            entered=stamps.optional("entered", stamps.integer, 0),
            saved=_saved(record.record("report")),
        )


@dataclass(frozen=True)
class BootedPeer:
    """The output of `kjump boot-peer --json` for a peer: its name and kernel release, and its boot time in seconds."""

    name: str
    release: str
    boot_seconds: float

    @classmethod
    def from_json(cls, record: Record) -> BootedPeer:
        """Read one line of what the command printed; FormatError."""
        report = record.record("report")
        return cls(record.text("peer"), report.text("release"), report.number("boot_seconds", low=0))


@dataclass(frozen=True)
class CallReport:
    """One call of `kjump call --json`: what the function returned and wrote, and when.

    `began` (monotonic clock) and `seconds` are measured by the caller; `tsc_in` and `tsc_end` are the time stamp
    counter at the gate's entry and at the function's end.
    """

    value: int
    output: str
    began: float
    seconds: float
    tsc_in: int
    tsc_end: int

    @classmethod
    def from_json(cls, record: Record) -> CallReport:
        """Read one of the calls that the command printed; FormatError."""
        return cls(
            value=record.integer("value"),
            output=record.text("output"),
            began=record.number("began", low=0),
            seconds=record.number("seconds", low=0),
            tsc_in=record.integer("tsc_in"),
            tsc_end=record.integer("tsc_end"),
        )
