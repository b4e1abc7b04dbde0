"""The second kernel on standby: a resident peer that saves this system, so that a hibernation need not boot one.

After a resume it is not resident any more, because the image loaded in A is useless; `travel` boots it again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from kjump.errors import FormatError, HostError, KjumpError
from kjump.formats.record import JsonObject, Record
from kjump.gates import Gate
from kjump.hibernate import preflight, suspend
from kjump.hibernate.away import Away, Tell
from kjump.hibernate.clock import Moment
from kjump.host import kernel_memory
from kjump.kexec import second_kernel as described
from kjump.kexec.window import DEFAULT_SIZE
from kjump.memory import PAGE_SIZE
from kjump.peers import FOLDER
from kjump.peers import on_disk as peers_on_disk
from kjump.peers.declaration import Declared, layout_of
from kjump.peers.lifecycle import Order, Peers, Visit

NAME = "standby"
_PATH = 4096


@dataclass(frozen=True)
class Wanted:
    """The kernel to keep on standby, its initramfs, and the size of its window in bytes."""

    kernel: Path
    initrd: Path
    window_size: int = DEFAULT_SIZE

    def to_json(self) -> JsonObject:
        """Return it as JSON for its file."""
        return {"kernel": str(self.kernel), "initrd": str(self.initrd), "window_size": self.window_size}

    @classmethod
    def from_json(cls, record: Record) -> Wanted:
        """Read what `to_json` gave; FormatError."""
        kernel, initrd = record.text("kernel", limit=_PATH), record.text("initrd", limit=_PATH)
        return cls(Path(kernel), Path(initrd), record.integer("window_size", low=PAGE_SIZE, high=1 << 32))


def start(wanted: Wanted, folder: Path = FOLDER, *, on_disk: Path | None = None) -> Visit:
    """Boot the kernel `wanted`, and record it in `folder`; KjumpError when it does not come back.

    It stays in memory, or is stored in the file `on_disk`.
    """
    if on_disk is not None:
        peers_on_disk.refuse_other_file(on_disk)
    with Peers(folder) as peers:
        declared = Declared(NAME, wanted.kernel, (wanted.initrd,), window_size=wanted.window_size)
        (visit,) = peers.boot([declared])
        _remembered(folder).write_text(json.dumps(wanted.to_json()))
        if on_disk is not None:
            peers.put_on_disk(on_disk)
    return visit


def stop(folder: Path = FOLDER) -> bool:
    """Drop the kernel on standby and its record; tell whether there was one."""
    _remembered(folder).unlink(missing_ok=True)
    with Peers(folder) as peers:
        there = peers.state is not None and any(p.name == NAME for p in peers.state.peers)
        if there:
            peers.drop()
    return there


def is_ready(folder: Path = FOLDER, ahead: peers_on_disk.Unpacking | None = None) -> bool:
    """Tell whether a kernel stands by; one on disk counts if there is memory for it and the devices have not changed.

    One that is being unpacked `ahead` has its memory already.
    """
    if not folder.exists():
        return False
    with Peers(folder) as peers:
        states = [p["state"] for p in peers.listing() if p["name"] == NAME]
        stored = peers.state.stored if peers.state else None
        if stored is None:
            return states == ["resident"]
        begun = ahead is not None and ahead.stored == stored
        return bool(states) and stored.is_good() and (begun or preflight.has_room(stored.memory + stored.size))


def travel(
    request: suspend.TripRequest, tell: Tell, folder: Path = FOLDER, *, ahead: peers_on_disk.Unpacking | None = None
) -> suspend.Trip:
    """Jump to the kernel on standby with `request`; returns when it jumps back, or its image was restored.

    Interface and errors are those of `kjump.hibernate.suspend.travel`. A kernel on disk may have been unpacked `ahead`.
    """
    journey = suspend.Journey()
    with Peers(folder) as peers, peers.loaded(ahead):
        peer = peers.require().find(NAME)
        with kernel_memory.Kcore() as kcore, suspend.claim(request) as target:
            note = kcore.vmcoreinfo_note()
            around = described.describe_machine(Gate(), vmcoreinfo_note=note, low=peer.low)
            layout = layout_of(peer.window, around, 1)
            job = suspend.save_job(request, kcore, around, layout, target, tell)
            limit = suspend.time_limit(request, around)
            tell("switching to the kernel on standby")
            job = replace(job, departure=journey.depart(job.file_systems))
            away = Away(target, request.kind, tell)
            visit = peers.switch(NAME, Order(job, time_limit=limit, watchdog=request.watchdog), away)
            away.report = visit.report
        trip = journey.arrive(away, window_bytes=layout.window.size, cookie=job.cookie)
        gone = not visit.resident and peers.require().stored is None
        if gone:
            peers.drop()
    tell("back")
    if not gone:
        return trip
    begun_again = Moment.now().stamp
    _again(tell, folder)
    return replace(trip, again_seconds=trip.pace.seconds(begun_again, Moment.now().stamp))


def _again(tell: Tell, folder: Path) -> None:
    """Boot the kernel on standby again; an error is told, not raised, so that the hibernation's result is returned."""
    try:
        start(_wanted(folder), folder)
        tell("a second kernel stands by again")
    except KjumpError as error:
        tell(f"no second kernel stands by any more: {error}")


def _wanted(folder: Path) -> Wanted:
    try:
        return Wanted.from_json(Record.parse(_remembered(folder).read_bytes(), "what is remembered of the standby"))
    except (OSError, FormatError):
        raise HostError("it is not known which kernel stood by: run `kjump standby` again") from None


def _remembered(folder: Path) -> Path:
    return folder / "standby.json"
