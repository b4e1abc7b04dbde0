"""The resident peers of the first kernel: boot, switch, list, store, drop."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from kjump.errors import HostError, JumpError, KjumpError, UsageError
from kjump.formats.record import JsonObject
from kjump.gates import STATE_PARKED, Gate
from kjump.hibernate import DEFAULT_WATCHDOG, post_mortem
from kjump.hibernate.after_jump import SEED_SIZE
from kjump.hibernate.away import Away
from kjump.hibernate.jobs import Assignment, Job, NoJob
from kjump.hibernate.report import Report
from kjump.host import hugetlbfs, kernel_memory, procfs
from kjump.host.locked_memory import HostPages
from kjump.kexec import loader
from kjump.kexec.channel import Channel, PageList, Parcel
from kjump.kexec.kimage import Shadow, walk
from kjump.kexec.mailbox import Outcome
from kjump.kexec.plan import ARCH_X86_64
from kjump.memory import PAGE_SIZE
from kjump.peers import FOLDER
from kjump.peers.declaration import Declared, arrange, pages_to_restart
from kjump.peers.memory_map import Resident, Survey
from kjump.peers.on_disk import Unpacking, store
from kjump.peers.registry import Ledger, Peer, State, boot_id
from kjump.ranges import Range, RangeSet


@dataclass(frozen=True)
class Order:
    """A job for a peer, with a `message` of any bytes; limits are in seconds, as in `Assignment`."""

    job: Job = field(default_factory=NoJob)
    message: bytes = b""
    time_limit: float = 0
    watchdog: int = DEFAULT_WATCHDOG


@dataclass(frozen=True)
class Visit:
    """The result of a switch: seconds `away` (by the kernel's wall clock), the peer's `report` and `message`.

    `resident` tells whether the peer can be entered again; `reason` why the job failed, or is empty.
    """

    peer: str
    outcome: Outcome
    resident: bool
    reason: str
    away: float
    report: Report
    message: bytes

    def raise_unless_done(self) -> None:
        """Raise JumpError with the reason when the job was not done."""
        if self.outcome != Outcome.DONE:
            raise JumpError(f"{self.peer}: {self.reason}; this system went on unharmed")


class _Answer:
    """A peer's answer to the order with the number `sequence`; `message` is set by `read`."""

    def __init__(self, channel: Channel, sequence: int) -> None:
        self._channel = channel
        self._sequence = sequence
        self.message = b""

    def read(self) -> tuple[Outcome, JsonObject]:
        """Read it; FormatError when the channel is damaged."""
        outcome, parcel = self._channel.answer(self._sequence)
        self.message = parcel.message
        return outcome, parcel.content


class Peers:
    """The resident peers of the running kernel; a context manager, which locks them against other commands."""

    def __init__(self, folder: Path = FOLDER, *, even_damaged: bool = False) -> None:
        """Use the record in `folder`; with `even_damaged` an unreadable one is accepted, to be dropped."""
        self._ledger = Ledger(folder)
        self._even_damaged = even_damaged
        self._damaged = False
        self._loaded = False
        self.state: State | None = None

    def __enter__(self) -> Peers:
        """Lock and read the records; HostError when another command holds the lock."""
        self._ledger.__enter__()
        try:
            self.state = self._ledger.read()
        except KjumpError:
            if not self._even_damaged:
                self._ledger.__exit__(None, None, None)
                raise
            self._damaged = True
        if self.state is not None:
            kernel_memory.know_symbols(self.state.symbols)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        self._ledger.__exit__(kind, error, trace)

    def boot(self, declared: Sequence[Declared], order: Order | None = None) -> list[Visit]:
        """Load the peers `declared`, and start each with `order` as its first order; returns when all have come back.

        UsageError when peers are resident already; KjumpError, with nothing loaded, when a peer cannot be started.
        """
        if self.state is not None and not self._lost():
            known = ", ".join(p.name for p in self.state.peers)
            raise UsageError(f"there are resident peers already ({known}): `kjump drop` lets them go")
        self.drop()
        arrangement = arrange(declared, self._ledger.channel_path)
        arrangement.page.close()
        try:
            os.sync()
            loader.current().load(arrangement.plan)
            head = _loaded_image()
            _find_gates(arrangement.peers)
            channel, symbols = arrangement.page.address, kernel_memory.known_symbols()
            self.state = State(
                boot_id(), arrangement.cookie.hex(), channel, head, dict(symbols), peers=arrangement.peers
            )
            self._ledger.write(self.state)
            visits = []
            for peer in arrangement.peers:
                visits.append(self.switch(peer.name, order or Order()))
                visits[-1].raise_unless_done()
            return visits
        except BaseException:
            self.drop()
            raise

    def switch(self, name: str | None, order: Order, away: Away | None = None) -> Visit:
        """Jump to the peer called `name` (None: the only one) with `order`; returns when the first kernel runs again.

        `away` belongs to an order that writes an image: it has the target (see `kjump.hibernate.away`).
        """
        state = self.require()
        peer = state.find(name)
        if not peer.alive:
            raise UsageError(f"{peer.name} is gone ({peer.why_not}): `kjump restart {peer.name}` starts it again")
        with self.loaded():
            return self._go(state, peer, order, None, away)

    def put_on_disk(self, path: Path) -> int:
        """Write the memory of all parked peers to the file `path`, and free it; returns the file's size in bytes.

        Each switch then loads the peers from the file, without the changes of earlier switches. HostError when the file
        cannot be written; the peers stay in memory then.
        """
        state = self.require()
        if not all(self.parked().values()):
            raise UsageError("only peers that are parked can be put on disk: `kjump restart` those that are gone")
        state.stored = store(path, [place for p in state.peers for place in p.places], state.peers[0].gate)
        self._ledger.write(state)
        loader.current().unload(ARCH_X86_64)
        return state.stored.size

    @contextlib.contextmanager
    def loaded(self, ahead: Unpacking | None = None) -> Iterator[None]:
        """Load peers that are on disk while the context lasts; `switch` does the same by itself.

        `ahead` may have unpacked them. HostError when the file's contents are not those that were written.
        """
        state = self.state
        if state is None or state.stored is None or self._loaded:
            yield
            return
        loader.current().load(state.stored.plan(ahead))
        self._loaded = True
        try:
            state.head = _loaded_image()
            _find_gates(state.peers)
            yield
        finally:
            self._loaded = False
            loader.current().unload(ARCH_X86_64)
            for peer in state.peers:
                peer.alive, peer.why_not = True, ""
            self._ledger.write(state)

    def restart(self, name: str | None, order: Order | None = None) -> Visit:
        """Start the peer called `name` anew from its files, whatever its state; the other peers are unchanged.

        KjumpError, with nothing changed, when its files cannot be read.
        """
        state = self.require()
        peer = state.find(name)
        if state.stored is not None:
            raise UsageError(f"{peer.name} is on disk, and as new at each switch: there is nothing to start anew")
        wanted = pages_to_restart(peer, state.peers)
        channel = Range.of_size(state.channel, hugetlbfs.SIZE)
        avoid = RangeSet([channel, *(place for p in state.peers for place in p.places)])
        pages = HostPages(len(wanted), avoid)
        try:
            for index, data in enumerate(wanted.values()):
                pages.write(index, data.ljust(PAGE_SIZE, b"\0"))
            listed = PageList(state.channel, tuple(zip(pages.addresses, wanted, strict=True)))
            pages.check()
            return self._go(state, peer, order or Order(), listed)
        finally:
            pages.release()

    def _go(self, state: State, peer: Peer, order: Order, restart: PageList | None, away: Away | None = None) -> Visit:
        state.sequence += 1
        page = hugetlbfs.StandingPage(self._ledger.channel_path)
        try:
            if page.address != state.channel:
                raise HostError("the channel is not where the peers know it: `kjump drop`, then start them again")
            channel = Channel(page.memory, bytes.fromhex(state.cookie))
            # A peer on disk starts each time with the same state of its random number generator, so it is given a seed.
            seed = b"" if state.stored is None else os.getrandom(SEED_SIZE)
            assignment = Assignment(order.job, peer.gate, order.time_limit, order.watchdog, seed)
            parcel = Parcel(state.sequence, assignment.checked(), order.message)
            channel.post(parcel, head=state.head, wanted=peer.gate, restart=restart)
            self._ledger.write(state)
            os.sync()
            left = time.clock_gettime(time.CLOCK_BOOTTIME)
            with away or Away() as gone:
                loader.current().jump()
                gone.landed()
                seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - left
                answer = _Answer(channel, state.sequence)
                gone.came_back(answer.read)
        finally:
            page.close()
        return self._account(state, peer, gone, answer.message, seconds)

    def _account(self, state: State, peer: Peer, gone: Away, message: bytes, away: float) -> Visit:
        outcome, report, resident = gone.outcome, gone.report, gone.report.resident
        if outcome == Outcome.PANIC:
            report = _with_log(report)
        reason = post_mortem.reason(outcome, report)
        peer.switches += 1
        peer.alive = resident
        peer.why_not = "" if resident else reason or "it left for good"
        peer.release = report.release or peer.release
        peer.boot_seconds = peer.boot_seconds or report.boot_seconds
        self._ledger.write(state)
        report = replace(report, resident=False)  # the Visit has its own field `resident`
        return Visit(peer.name, outcome, resident, reason, round(away, 4), report, message)

    def drop(self) -> list[str]:
        """Unload all peers and free their memory; returns their names. HostError when the kernel refuses."""
        state, self.state = self.state, None
        names = [p.name for p in state.peers] if state else []
        if self._damaged or (state is not None and not _is_other_image(state)):
            loader.current().unload(ARCH_X86_64)
        self._ledger.forget()
        hugetlbfs.remove(self._ledger.channel_path)
        if state is not None and state.stored is not None:
            with contextlib.suppress(OSError):
                Path(state.stored.path).unlink()
        return names

    def gates(self) -> dict[str, Gate]:
        """Return the peers' gates by name, read from the source pages of the loaded image."""
        with kernel_memory.Kcore() as kcore:
            memory = kcore.physical()
            return {p.name: Gate.unpack(memory.read(p.gate_kept, PAGE_SIZE)) for p in self.require().peers}

    def listing(self) -> list[dict[str, object]]:
        """Return name, release, window, number of switches and state of each peer.

        The state is "resident" (the gate says that the peer can be re-entered), "on disk", "gone" (it cannot be
        re-entered), or "lost" (its memory was freed).
        """
        if self.state is None:
            return []
        if self.state.stored is not None:
            states = dict.fromkeys((p.name for p in self.state.peers), "on disk")
        elif self._lost():
            states = dict.fromkeys((p.name for p in self.state.peers), "lost")
        else:
            states = {name: "resident" if parked else "gone" for name, parked in self.parked().items()}
        return [
            {
                "name": p.name,
                "release": p.release,
                "window": str(p.window),
                "switches": p.switches,
                "state": states[p.name],
                "reason": p.why_not,
            }
            for p in self.state.peers
        ]

    def survey(self) -> Survey:
        """Return, for a picture, the physical ranges of the peers and of their shadows."""
        state = self.require()
        with kernel_memory.Kcore() as kcore:
            shadow = Shadow([]) if state.stored is not None else post_mortem.peer_shadow(kcore)
        iomem = procfs.iomem()
        peers = tuple(Resident(p.name, p.release, RangeSet(p.places), _sources(shadow, p)) for p in state.peers)
        return Survey(
            ram=procfs.ram(),
            kernel=RangeSet(r.range for r in iomem if r.name.startswith("Kernel ")),
            channel=RangeSet([Range.of_size(state.channel, hugetlbfs.SIZE)]),
            peers=peers,
        )

    def parked(self) -> dict[str, bool]:
        """Return for each peer, by name, whether its gate says that it can be re-entered."""
        return {name: gate.state == STATE_PARKED for name, gate in self.gates().items()}

    def require(self) -> State:
        """Return the recorded state; UsageError when there is no peer, HostError when the peers' memory is gone."""
        if self.state is None:
            raise UsageError("there is no resident peer: `kjump boot-peer` starts one")
        if self._lost():
            raise HostError(
                "the resident peers are gone: something else was loaded or unloaded, or this system was resumed "
                "from an image; `kjump drop` clears up"
            )
        return self.state

    def _lost(self) -> bool:
        state = self.state
        if state is None or state.stored is not None:
            return False
        return not loader.current().is_loaded() or _is_other_image(state)


def refuse_if_peers_are_resident(folder: Path = FOLDER) -> None:
    """Raise UsageError when a load would take the memory of a resident peer."""
    if not folder.exists():
        return
    with Peers(folder) as peers:
        names = [str(p["name"]) for p in peers.listing() if p["state"] == "resident"]
    if names:
        raise UsageError(f"peer {', '.join(names)} is resident, and its memory is needed: `kjump drop` lets it go")


def _sources(shadow: Shadow, peer: Peer) -> RangeSet:
    """Return the physical ranges that hold the peer's window and low memory while the peer does not run."""
    placed = []
    for place in peer.places:
        for frame, holder, count in shadow.place(Range(place.start // PAGE_SIZE, place.end // PAGE_SIZE)):
            if holder != frame:
                placed.append(Range.of_size(holder * PAGE_SIZE, count * PAGE_SIZE))
    return RangeSet(placed)


def _loaded_image() -> int:
    """Return the head of the loaded image's indirection list."""
    with kernel_memory.Kcore() as kcore:
        return loader.current().image_list_head(kcore)


def _find_gates(peers: Sequence[Peer]) -> None:
    """Set `gate_kept` of `peers`, which have just been loaded."""
    frames = {peer.gate // PAGE_SIZE: peer for peer in peers}
    with kernel_memory.Kcore() as kcore:
        runs = walk(kcore.physical().read, loader.current().image_list_head(kcore))
    for destination, source, count in runs:  # a Shadow of so many runs would take long to build
        for frame, peer in frames.items():
            if destination <= frame < destination + count:
                peer.gate_kept = (source + frame - destination) * PAGE_SIZE


def _is_other_image(state: State) -> bool:
    """Tell whether an image is loaded that is not the peers'."""
    with kernel_memory.Kcore() as kcore:
        image = kcore.read_u64(state.image_symbol)
        return bool(image) and kcore.read_u64(image) != state.head


def _with_log(report: Report) -> Report:
    with kernel_memory.Kcore() as kcore:
        return post_mortem.with_log(kcore, report)
