"""Resident peers as A has them: boot, switch, look, drop."""

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
    """What a peer is to do, with a `message` of any bytes; limits in seconds, as in `Assignment`."""

    job: Job = field(default_factory=NoJob)
    message: bytes = b""
    time_limit: float = 0
    watchdog: int = DEFAULT_WATCHDOG


@dataclass(frozen=True)
class Visit:
    """What came of a switch: seconds `away` (as far as the kernel's clock knows), the peer's `report` and `message`.

    `resident` tells whether the peer can be entered again; `reason` why the job failed.
    """

    peer: str
    outcome: Outcome
    resident: bool
    reason: str
    away: float
    report: Report
    message: bytes

    def raise_unless_done(self) -> None:
        """Raise JumpError with the reason when the job did not come to its end."""
        if self.outcome != Outcome.DONE:
            raise JumpError(f"{self.peer}: {self.reason}; this system went on unharmed")


class _Answer:
    """A peer's answer to the order with the number `sequence`; `message` is there when it has been read."""

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
    """The resident peers of the running kernel; use as a context manager, which locks them."""

    def __init__(self, folder: Path = FOLDER, *, even_damaged: bool = False) -> None:
        """Keep what is remembered in `folder`; with `even_damaged` that may be unreadable, to be dropped."""
        self._ledger = Ledger(folder)
        self._even_damaged = even_damaged
        self._damaged = False
        self._loaded = False
        self.state: State | None = None

    def __enter__(self) -> Peers:
        """Look what there is; HostError when another command is at work."""
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
        """Let others in."""
        self._ledger.__exit__(kind, error, trace)

    def boot(self, declared: Sequence[Declared], order: Order | None = None) -> list[Visit]:
        """Load `declared` and start each once, with `order` as its first; returns when all have come back.

        UsageError when peers are resident already; KjumpError and nothing loaded when one cannot be started.
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
        """Go to the peer called `name` (None: the only one) with `order`; returns when somebody comes back.

        An order that has an image written brings `away`, which knows the target (see `kjump.hibernate.away`).
        """
        state = self.require()
        peer = state.find(name)
        if not peer.alive:
            raise UsageError(f"{peer.name} is gone ({peer.why_not}): `kjump restart {peer.name}` starts it again")
        with self.loaded():
            return self._go(state, peer, order, None, away)

    def put_on_disk(self, path: Path) -> int:
        """Write all peers, as they are parked, to `path`, and give their memory back; returns the file's size in bytes.

        Each switch loads them from there, and what becomes of them on the other side is forgotten with it. HostError
        when the file cannot be written; the peers are in memory then, as before.
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
        """Have the peers in memory meanwhile, should they be on disk; a switch does so for itself.

        `ahead` may have unpacked them. HostError when their file is not what was written.
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
        """Start the peer called `name` anew from its files, whatever has become of it; the others stay as they are.

        KjumpError when its files cannot be read; nothing has changed then.
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
            # The generator of one on disk is each time what it was when it was stored, and would say the same.
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
        report = replace(report, resident=False)  # which `resident` says
        return Visit(peer.name, outcome, resident, reason, round(away, 4), report, message)

    def drop(self) -> list[str]:
        """Let all peers go and give their memory back; returns their names. HostError when the kernel refuses."""
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
        """Return the peers' gates as they stand, out of the source pages of the loaded image."""
        with kernel_memory.Kcore() as kcore:
            memory = kcore.physical()
            return {p.name: Gate.unpack(memory.read(p.gate_kept, PAGE_SIZE)) for p in self.require().peers}

    def listing(self) -> list[dict[str, object]]:
        """Return name, release, window, number of switches and state of each peer.

        A peer's state is "resident" (its gate says that it can be re-entered), "on disk", "gone", or "lost": its memory
        was freed.
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
        """Return where the peers are, and where what they displace is kept, for a picture."""
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
        """Tell of each peer whether its gate says that it can be re-entered."""
        return {name: gate.state == STATE_PARKED for name, gate in self.gates().items()}

    def require(self) -> State:
        """Return what there is; UsageError when there is no peer, HostError when the peers' memory is gone."""
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
    """Return the pages (bytes) that hold what lies in the peer's window and low memory while the peer does not run."""
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
    """Note where the gates of `peers`, which have just been loaded, are kept."""
    frames = {peer.gate // PAGE_SIZE: peer for peer in peers}
    with kernel_memory.Kcore() as kcore:
        runs = walk(kcore.physical().read, loader.current().image_list_head(kcore))
    for destination, source, count in runs:  # no Shadow is made of them: of so many that takes time
        for frame, peer in frames.items():
            if destination <= frame < destination + count:
                peer.gate_kept = (source + frame - destination) * PAGE_SIZE


def _is_other_image(state: State) -> bool:
    """Whether an image is loaded that is not the peers'."""
    with kernel_memory.Kcore() as kcore:
        image = kcore.read_u64(state.image_symbol)
        return bool(image) and kcore.read_u64(image) != state.head


def _with_log(report: Report) -> Report:
    with kernel_memory.Kcore() as kcore:
        return post_mortem.with_log(kcore, report)
