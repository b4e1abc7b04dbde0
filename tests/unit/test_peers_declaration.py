"""Resident peers, as far as they can be had without one: what is declared, what is remembered, where they lie."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import HostError, PlanError, UsageError
from kjump.formats.e820 import IomemResource
from kjump.kexec.window import MIB, find_window, places, split_low_memory
from kjump.peers import registry
from kjump.peers.declaration import Declared, read_declaration
from kjump.peers.registry import Ledger, Peer, State
from kjump.ranges import Range, RangeSet

KERNEL, INITRD = Path("/boot/vmlinuz"), Path("/boot/initrd")


def test_a_declaration_names_peers_with_defaults() -> None:
    text = """
    [[peer]]
    name = "old"
    kernel = "/boot/vmlinuz-6.1"
    initrd = ["a", "b"]
    append = "quiet"
    window_size = 67108864

    [[peer]]
    initrd = "c"
    """
    assert read_declaration(text, kernel=KERNEL, initrd=INITRD) == [
        Declared("old", Path("/boot/vmlinuz-6.1"), (Path("a"), Path("b")), "quiet", window_size=64 * MIB),
        Declared("B2", KERNEL, (Path("c"),)),
    ]
    assert read_declaration("[[peer]]", kernel=KERNEL, initrd=INITRD) == [Declared("B1", KERNEL, (INITRD,))]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", r"no \[\[peer\]\]"),
        ("peer = 1", r"no \[\[peer\]\]"),
        ("[[peer]", "not TOML"),
        ("[[peer]]\nname='x'\n[[peer]]\nname='x'", "same name"),
        ("[[peer]]\nwindow=1", "peer B1: unknown key window"),
        ("[[peer]]\nwindow_size='64M'", 'peer B1: window_size is "64M", not an integer'),
        ("[[peer]]\nkernel='k'", "give its kernel and initrd"),
        ("[[peer]]\nkernel=1", "kernel is 1, not a string"),
        ("[[peer]]\nname=[]", "name is"),
        ("[[peer]]\ninitrd=[1]", "initrd is 1, not a string"),
        ("peer=[1]", "no "),
    ],
)
def test_a_wrong_declaration_is_refused_in_one_sentence(text: str, why: str) -> None:
    initrd = None if "kernel" in text else INITRD
    with pytest.raises(UsageError, match=why):
        read_declaration(text, kernel=KERNEL, initrd=initrd)


def peer(name: str) -> Peer:
    return Peer(name, "k", ["i"], "", Range(16 * MIB, 80 * MIB), Range(4096, 8192), 79 * MIB)


def make_state(*names: str) -> State:
    symbols = {"kexec_image": 0xFFFF_FFFF_8000_0000}
    return State(registry.boot_id(), "00" * 16, 1 << 21, 0x5002, symbols, peers=[peer(n) for n in names])


def test_what_is_remembered_comes_back(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        assert ledger.read() is None
        kept = make_state("left", "right")
        kept.find("left").switches = 7
        ledger.write(kept)
    with Ledger(tmp_path) as ledger:
        assert ledger.read() == kept
        ledger.forget()
        assert ledger.read() is None


def test_the_peers_of_another_boot_are_not_there(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        kept = make_state("B")
        kept.boot_id = "another"
        ledger.write(kept)
        assert ledger.read() is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"peers": 1}', '{"peers": [], "no": 1}'])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "peers.json").write_text(text)
    with Ledger(tmp_path) as ledger, pytest.raises(HostError, match="damaged"):
        ledger.read()


def test_only_one_command_at_a_time(tmp_path: Path) -> None:
    with Ledger(tmp_path), pytest.raises(HostError, match="another kjump command"), Ledger(tmp_path):
        pass


def test_a_peer_is_found_by_name_or_alone() -> None:
    assert make_state("B").find(None).name == "B"
    assert make_state("left", "right").find("right").name == "right"
    with pytest.raises(UsageError, match="name one of left, right"):
        make_state("left", "right").find(None)
    with pytest.raises(UsageError, match="no peer called C; there is B"):
        make_state("B").find("C")


@given(size=st.integers(1, 640).map(lambda n: n << 10), count=st.integers(1, 8))
def test_low_memory_is_split_into_equal_parts_that_do_not_touch_a_foreign_page(size: int, count: int) -> None:
    low = Range.of_size(4096, size)
    try:
        parts = split_low_memory(low, count)
    except PlanError:
        assert size // count < 68 << 10
        return
    assert len({p.size for p in parts}) == 1
    assert all(low.covers(p) and p.start % 4096 == 0 and p.size >= 64 << 10 for p in parts)
    assert RangeSet(parts).size == sum(p.size for p in parts)


def test_windows_keep_out_of_each_others_way() -> None:
    iomem = [IomemResource(Range(MIB, 300 * MIB), "System RAM", 0)]
    first = find_window(places(iomem), 64 * MIB)
    second = find_window(places(iomem, [first]), 64 * MIB)
    assert (first, second) == (Range(16 * MIB, 80 * MIB), Range(80 * MIB, 144 * MIB))
    with pytest.raises(PlanError):
        find_window(places(iomem, [first, second, Range(180 * MIB, 200 * MIB)]), 128 * MIB)
