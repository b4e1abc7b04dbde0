"""What is recorded of a system's disks: what was mounted, in which state, and how much was written.

Typed values; `target.mounts` looks at what is mounted, `target.filesystems` at the disks.
"""

from __future__ import annotations

from dataclasses import dataclass

from kjump.formats import ext4, xfs
from kjump.formats.record import JsonObject, Record

_PATH = 4096
"""Characters of a path; a mount point may be as long."""
_MOST_DEVICES = 4096

COUNTS = (6, 13)
"""Fields of /sys/dev/block/*/stat (Documentation/block/stat.rst): sectors written and discarded.

Not the number of writes, field 4: on 6.12 each sync of an idle ext4 adds one there, a flush without data.
"""


@dataclass(frozen=True)
class Mounted:
    """A block device that is mounted at `where`, or swapped to (then `type` is "swap" and `where` empty)."""

    device: str
    where: str
    type: str
    writable: bool

    def __str__(self) -> str:
        """Return it in words."""
        if self.type == "swap":
            return f"the swap space on {self.device}"
        return f"the {self.type} file system on {self.device} (mounted at {self.where})"

    def to_json(self) -> JsonObject:
        """Return it for a job and for an image's facts."""
        return {"device": self.device, "where": self.where, "type": self.type, "writable": self.writable}

    @classmethod
    def from_json(cls, record: Record) -> Mounted:
        """Read what `to_json` gave; FormatError."""
        return cls(
            record.text("device", limit=_PATH),
            record.text("where", limit=_PATH),
            record.text("type", limit=_PATH),
            record.flag("writable"),
        )


@dataclass(frozen=True)
class DiskState:
    """What tells the state of a file system: the SHA-256 of its start, and the identity of an ext4 or an XFS."""

    digest: str
    identity: ext4.Identity | None = None
    xfs: xfs.Identity | None = None

    def to_json(self) -> JsonObject:
        """Return it for an image's facts."""
        return {
            "digest": self.digest,
            "identity": self.identity.to_json() if self.identity else None,
            "xfs": self.xfs.to_json() if self.xfs else None,
        }

    @classmethod
    def from_json(cls, record: Record) -> DiskState:
        """Read what `to_json` gave; FormatError."""
        return cls(
            record.hexadecimal("digest", length=32).hex(),
            record.maybe("identity", ext4.Identity.from_json),
            record.maybe("xfs", xfs.Identity.from_json),
        )


@dataclass(frozen=True)
class FileSystem:
    """A file system that was mounted when the system was saved, and its state then."""

    mounted: Mounted
    state: DiskState

    def to_json(self) -> JsonObject:
        """Return it for an image's facts."""
        return self.mounted.to_json() | {"state": self.state.to_json()}

    @classmethod
    def from_json(cls, record: Record) -> FileSystem:
        """Read what `to_json` gave; FormatError."""
        return cls(Mounted.from_json(record), record.map("state", DiskState.from_json))


@dataclass(frozen=True)
class Lineage:
    """Which history a system has: its boot, and the roll-backs since, of which only the last counts.

    `id` changes with each boot and each roll-back; `base` is the cookie (hexadecimal) of the snapshot that was rolled
    back to last, empty when there was none.
    """

    id: str
    base: str = ""

    def to_json(self) -> JsonObject:
        """Return it for the mailbox, for an image's facts, and for the file that remembers it."""
        return {"id": self.id, "base": self.base}

    @classmethod
    def from_json(cls, record: Record) -> Lineage:
        """Read what `to_json` gave; FormatError."""
        return cls(record.text("id", limit=_PATH), record.text("base", limit=_PATH))


@dataclass(frozen=True)
class Written:
    """How much was written to a device since it is there: the counts of its statistics (`COUNTS`)."""

    device: str
    counts: tuple[int, ...]

    def to_json(self) -> JsonObject:
        """Return it for the mailbox and for an image's facts."""
        return {"device": self.device, "counts": list(self.counts)}

    @classmethod
    def from_json(cls, record: Record) -> Written:
        """Read what `to_json` gave; FormatError."""
        return cls(record.text("device", limit=_PATH), record.integers("counts", limit=len(COUNTS)))


@dataclass(frozen=True)
class Departure:
    """What the first kernel says of its disks at the jump, and cannot say sooner."""

    lineage: Lineage
    written: tuple[Written, ...]

    def to_json(self) -> JsonObject:
        """Return it for the mailbox and for an image's facts."""
        return {"lineage": self.lineage.to_json(), "written": [item.to_json() for item in self.written]}

    @classmethod
    def from_json(cls, record: Record) -> Departure:
        """Read what `to_json` gave; FormatError."""
        items = record.items("written", limit=_MOST_DEVICES)
        return cls(record.map("lineage", Lineage.from_json), tuple(Written.from_json(item) for item in items))
