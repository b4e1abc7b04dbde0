"""The record of the resident peers, kept between commands: a JSON file in /run/kjump.

/run is emptied at boot, when the peers are gone too. A peer's state is in its gate; the file says where the gate is.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from kjump.errors import FormatError, HostError, UsageError
from kjump.formats.record import Json, JsonObject, Record
from kjump.host import root
from kjump.memory import PAGE_SIZE
from kjump.peers import FOLDER
from kjump.peers.on_disk import Stored
from kjump.ranges import Range

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_ADDRESS_END = 1 << 52


@dataclass
class Peer:
    """A peer: its files, its `window` and `low` memory, its gate (all physical, bytes).

    `gate_kept` is the physical address of the page that holds the gate's first page while A runs; it does not change
    after the load. `release` is the peer's kernel release (empty until it has reported it), `alive` whether it can be
    entered.
    """

    name: str
    kernel: str
    initrds: list[str]
    append: str
    window: Range
    low: Range
    gate: int
    gate_kept: int = 0
    release: str = ""
    switches: int = 0
    alive: bool = True
    why_not: str = ""
    boot_seconds: float = 0.0

    @property
    def places(self) -> tuple[Range, Range]:
        """The memory that the peer uses while it runs: its window and low memory."""
        return self.window, self.low

    def to_json(self) -> JsonObject:
        """Return it as JSON for the file."""
        places = {"window": [self.window.start, self.window.end], "low": [self.low.start, self.low.end]}
        return vars(self) | {"initrds": list(self.initrds), **places}

    @classmethod
    def from_json(cls, record: Record) -> Peer:
        """Read what `to_json` gave; FormatError."""
        return cls(
            name=record.text("name"),
            kernel=record.text("kernel"),
            initrds=list(record.texts("initrds")),
            append=record.text("append"),
            window=record.bounded("window", high=_ADDRESS_END, unit=PAGE_SIZE),
            low=record.bounded("low", high=_ADDRESS_END, unit=PAGE_SIZE),
            gate=record.integer("gate", high=_ADDRESS_END),
            gate_kept=record.integer("gate_kept", high=_ADDRESS_END),
            release=record.text("release"),
            switches=record.integer("switches"),
            alive=record.flag("alive"),
            why_not=record.text("why_not"),
            boot_seconds=record.number("boot_seconds", low=0),
        )


@dataclass
class State:
    """All peers, and the channel to them.

    `cookie` (hexadecimal) and `channel` (physical address) are the channel's; `head` is the first entry of the loaded
    image's indirection list, by which the image is recognized; `symbols` are the linear addresses of kernel symbols,
    which do not change while the kernel runs. `stored` describes the file of peers that are on disk.
    """

    boot_id: str
    cookie: str
    channel: int
    head: int
    symbols: dict[str, int]
    sequence: int = 0
    stored: Stored | None = None
    peers: list[Peer] = field(default_factory=list)

    @property
    def image_symbol(self) -> int:
        """The linear address of kexec_image."""
        return self.symbols["kexec_image"]

    def to_json(self) -> JsonObject:
        """Return it as JSON for the file."""
        symbols: JsonObject = dict(self.symbols)
        peers: list[Json] = [peer.to_json() for peer in self.peers]
        stored = self.stored.to_json() if self.stored else None
        return vars(self) | {"symbols": symbols, "peers": peers, "stored": stored}

    @classmethod
    def from_json(cls, record: Record) -> State:
        """Read what `to_json` gave; FormatError."""
        symbols = record.record("symbols")
        return cls(
            boot_id=record.text("boot_id"),
            cookie=record.hexadecimal("cookie", length=16).hex(),
            channel=record.integer("channel", high=_ADDRESS_END),
            head=record.integer("head"),
            symbols={name: symbols.integer(name, low=1) for name in {"kexec_image", *symbols.names()}},
            sequence=record.integer("sequence"),
            stored=record.maybe("stored", Stored.from_json),
            peers=[Peer.from_json(item) for item in record.items("peers")],
        )

    def find(self, name: str | None) -> Peer:
        """Return the peer called `name` (None: the only one); UsageError when there is no such peer."""
        known = ", ".join(p.name for p in self.peers)
        if name is None:
            if len(self.peers) != 1:
                raise UsageError(f"there are several peers: name one of {known}")
            return self.peers[0]
        for peer in self.peers:
            if peer.name == name:
                return peer
        raise UsageError(f"there is no peer called {name}; there is {known}")


def boot_id() -> str:
    """Return the identity of this boot (/proc/sys/kernel/random/boot_id)."""
    return root.at(_BOOT_ID).read_text().strip()


def encode(state: State) -> str:
    """Return `state` as JSON."""
    return json.dumps(state.to_json())


def decode(text: str) -> State:
    """Read what `encode` wrote; HostError when `text` is damaged."""
    try:
        return State.from_json(Record.parse(text, "the file that says which peers are resident"))
    except FormatError:
        raise HostError("the file that says which peers are resident is damaged: `kjump drop` clears it") from None


class Ledger:
    """The file of the record, locked while this is used as a context manager."""

    def __init__(self, folder: Path = FOLDER) -> None:
        """Use the file in `folder`."""
        self.folder = folder
        self._path = folder / "peers.json"

    def __enter__(self) -> Ledger:
        """Lock the file; HostError while another command holds the lock."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # readable by root only
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(f"cannot write in {self.folder}: {error.strerror}; be root") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise HostError("another kjump command is at work with the resident peers: wait for it") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unlock the file."""
        os.close(self._lock)

    @property
    def channel_path(self) -> Path:
        """The file of the channel's page (see `host.hugetlbfs`)."""
        return self.folder / "pages" / "channel"

    def read(self) -> State | None:
        """Return the recorded state; None when there are no peers. HostError when the file is damaged."""
        try:
            state = decode(self._path.read_text())
        except FileNotFoundError:
            return None
        return state if state.boot_id == boot_id() else None

    def write(self, state: State) -> None:
        """Record `state`."""
        partial = self._path.with_suffix(".part")
        partial.write_text(encode(state))
        partial.replace(self._path)

    def forget(self) -> None:
        """Remove the record."""
        self._path.unlink(missing_ok=True)
