"""A's side of resident peers, with a kernel that is not there: what is remembered, refused and reported."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from kjump.errors import HostError, JumpError, UsageError
from kjump.formats.record import JsonObject
from kjump.hibernate.jobs import CommandJob
from kjump.kexec import loader, mailbox
from kjump.kexec.channel import SIZE, Channel, Parcel
from kjump.kexec.plan import ARCH_X86_64, PRESERVE_CONTEXT, Plan
from kjump.peers import lifecycle as module
from kjump.peers.declaration import Arrangement, Declared
from kjump.peers.lifecycle import Order, Peers
from kjump.peers.on_disk import Stored
from kjump.peers.registry import Peer
from kjump.ranges import Range

MIB = 1 << 20
COOKIE = bytes(range(16))
Behaviour = Callable[[Channel, Parcel], None]


def obedient(channel: Channel, order: Parcel) -> None:
    """A peer that does as it is told, and stays."""
    words: JsonObject = {"resident": True, "release": "6.1.0", "boot_seconds": 1.5}
    channel.report(mailbox.Outcome.DONE, Parcel(order.sequence, words, order.message[::-1]))


class FakeKernel:
    """Stands for the kernel, the loaded image and the peers in it."""

    def __init__(self) -> None:
        self.memory = bytearray(SIZE)
        self.loaded = False
        self.head = 0x5002
        self.behaviour: Behaviour = obedient
        self.orders: list[Parcel] = []
        self.wanted = 0

    def load(self, plan: Plan) -> None:
        self.loaded = True

    def unload(self, flags: int) -> None:
        self.loaded = False

    def is_loaded(self) -> bool:
        return self.loaded

    def jump(self) -> None:
        channel = Channel(self.memory, COOKIE)
        self.orders.append(channel.order())
        self.wanted = int.from_bytes(self.memory[0xFF8:0x1000], "little")
        self.behaviour(channel, channel.order())


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    fake = FakeKernel()
    page = SimpleNamespace(memory=fake.memory, address=0x200000, close=lambda: None)

    def arrange(declared: list[Declared], path: Path) -> Arrangement:
        made = [
            Peer(d.name, "k", ["i"], "", Range(i * MIB, (i + 1) * MIB), Range(4096, 8192), i * MIB)
            for i, d in enumerate(declared, 16)
        ]
        return Arrangement(Plan(0, (), ARCH_X86_64 | PRESERVE_CONTEXT), made, page, COOKIE)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "arrange", arrange)
    monkeypatch.setattr(module, "_loaded_image", lambda: fake.head)
    monkeypatch.setattr(module.kernel_memory, "_known", {"kexec_image": 0xFFFF})
    monkeypatch.setattr(module, "_is_other_image", lambda state: fake.loaded and fake.head != state.head)
    monkeypatch.setattr(module, "_find_gates", lambda peers: None)
    monkeypatch.setattr(module.hugetlbfs, "StandingPage", lambda path: page)
    monkeypatch.setattr(module.hugetlbfs, "remove", lambda path: None)
    with loader.used(fake):  # type: ignore[arg-type]
        yield fake


def declared(*names: str) -> list[Declared]:
    return [Declared(name, Path("k"), (Path("i"),)) for name in names]


def test_peers_are_remembered_from_one_command_to_the_next(kernel: FakeKernel, tmp_path: Path) -> None:
    with Peers(tmp_path) as peers:
        visits = peers.boot(declared("left", "right"), Order(message=b"abc"))
    assert [(v.peer, v.resident, v.message) for v in visits] == [("left", True, b"cba"), ("right", True, b"cba")]
    with Peers(tmp_path) as peers:
        visit = peers.switch("right", Order(CommandJob(("x",)), b"12", time_limit=5))
        assert (visit.message, visit.report.release) == (b"21", "6.1.0")
        assert peers.state is not None
        assert [p.switches for p in peers.state.peers] == [1, 2]
    order = kernel.orders[-1]
    assert order.sequence == 3
    assert (order.content["do"], order.content["argv"], order.content["time_limit"]) == ("command", ["x"], 5)
    assert kernel.wanted == 17 * MIB


def test_a_failed_job_leaves_the_peer_resident(kernel: FakeKernel, tmp_path: Path) -> None:
    with Peers(tmp_path) as peers:
        peers.boot(declared("B"))
        kernel.behaviour = lambda c, o: c.report(
            mailbox.Outcome.FAILED, Parcel(o.sequence, {"resident": True, "reason": "no such job"})
        )
        visit = peers.switch(None, Order())
        with pytest.raises(JumpError, match="B: no such job; this system went on unharmed"):
            visit.raise_unless_done()
        kernel.behaviour = obedient
        peers.switch(None, Order()).raise_unless_done()


@pytest.mark.parametrize(
    ("outcome", "why"),
    [
        (mailbox.Outcome.NONE, "without a report"),
        (mailbox.Outcome.GONE, "the second kernel is gone"),
        (mailbox.Outcome.FAILED, "longer than its time limit"),
    ],
)
def test_a_peer_that_left_for_good_is_not_entered_again(
    kernel: FakeKernel, tmp_path: Path, outcome: mailbox.Outcome, why: str
) -> None:
    with Peers(tmp_path) as peers:
        peers.boot(declared("B", "C"))

        def leaves(channel: Channel, order: Parcel) -> None:
            if outcome == mailbox.Outcome.FAILED:
                channel.report(outcome, Parcel(order.sequence, {"reason": "longer than its time limit"}))
            else:
                channel.note({}, outcome)

        kernel.behaviour = leaves
        assert not peers.switch("B", Order()).resident
        jumps = len(kernel.orders)
        with pytest.raises(UsageError, match=why):
            peers.switch("B", Order())
        assert len(kernel.orders) == jumps
        kernel.behaviour = obedient
        assert peers.switch("C", Order()).resident


def test_an_image_that_is_not_the_peers_is_never_entered(kernel: FakeKernel, tmp_path: Path) -> None:
    with Peers(tmp_path) as peers:
        peers.boot(declared("B"))
    kernel.head = 0x9002
    with Peers(tmp_path) as peers:
        with pytest.raises(HostError, match="gone: something else was loaded"):
            peers.switch("B", Order())
        assert peers.drop() == ["B"]
    assert kernel.loaded, "what somebody else loaded stays"
    assert len(kernel.orders) == 1


def test_after_a_resume_the_peers_are_gone_and_others_can_be_started(kernel: FakeKernel, tmp_path: Path) -> None:
    with Peers(tmp_path) as peers:
        peers.boot(declared("B"))
    kernel.loaded = False
    with Peers(tmp_path) as peers:
        assert [p["state"] for p in peers.listing()] == ["lost"]
        peers.boot(declared("B"))
        assert peers.switch("B", Order()).resident


def test_a_boot_that_fails_leaves_nothing(kernel: FakeKernel, tmp_path: Path) -> None:
    kernel.behaviour = lambda c, o: c.note({}, mailbox.Outcome.GONE)
    with Peers(tmp_path) as peers:
        with pytest.raises(JumpError, match="B: the second kernel is gone"):
            peers.boot(declared("B"))
        assert not kernel.loaded
        with pytest.raises(UsageError, match="no resident peer"):
            peers.switch("B", Order())


def test_peers_are_not_replaced_without_being_dropped(kernel: FakeKernel, tmp_path: Path) -> None:
    with Peers(tmp_path) as peers:
        peers.boot(declared("B"))
        with pytest.raises(UsageError, match=r"resident peers already \(B\)"):
            peers.boot(declared("C"))
        assert peers.drop() == ["B"]
        assert not kernel.loaded
        peers.boot(declared("C"))


def test_a_message_too_long_is_refused_before_the_jump(kernel: FakeKernel, tmp_path: Path) -> None:
    with Peers(tmp_path) as peers:
        peers.boot(declared("B"))
        with pytest.raises(UsageError, match="too long"):
            peers.switch("B", Order(message=bytes(2 << 20)))
        assert len(kernel.orders) == 1
        assert peers.switch("B", Order()).resident


def test_what_is_remembered_may_be_damaged_and_is_dropped_all_the_same(kernel: FakeKernel, tmp_path: Path) -> None:
    with Peers(tmp_path) as peers:
        peers.boot(declared("B"))
    (tmp_path / "peers.json").write_text("{")
    with pytest.raises(HostError, match="`kjump drop` clears it"), Peers(tmp_path):
        pass
    with Peers(tmp_path, even_damaged=True) as peers:
        assert peers.drop() == []
    assert not kernel.loaded
    with Peers(tmp_path) as peers:
        assert peers.state is None


def test_peers_on_disk_are_loaded_for_each_switch(
    kernel: FakeKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "stored"

    def store(path: Path, places: list[Range], gate: int) -> Stored:
        assert places == [Range(16 * MIB, 17 * MIB), Range(4096, 8192)] and gate == 16 * MIB
        path.write_bytes(b"memory")
        return Stored(str(path), gate, "", ())

    monkeypatch.setattr(module, "store", store)
    monkeypatch.setattr(Stored, "plan", lambda self, ahead: Plan(self.entry, (), ARCH_X86_64 | PRESERVE_CONTEXT))
    monkeypatch.setattr(Peers, "parked", lambda self: {"B": True})
    with Peers(tmp_path) as peers:
        peers.boot(declared("B"))
        peers.put_on_disk(file)
    assert not kernel.loaded
    heads = []

    def leaves(channel: Channel, order: Parcel) -> None:
        heads.append(kernel.loaded)
        channel.note({}, mailbox.Outcome.GONE)

    for behaviour, resident in ((obedient, True), (leaves, False), (obedient, True)):
        kernel.behaviour = behaviour
        with Peers(tmp_path) as peers:
            assert [p["state"] for p in peers.listing()] == ["on disk"]
            assert peers.switch(None, Order()).resident == resident
        assert not kernel.loaded
    assert heads == [True]
    with Peers(tmp_path) as peers:
        with pytest.raises(UsageError, match="as new at each switch"):
            peers.restart(None)
        with pytest.raises(UsageError, match="there are resident peers already"):
            peers.boot(declared("C"))
        assert peers.drop() == ["B"]
    assert not file.exists()
