"""The gate between two kernels that both stay: A, and a peer that leaves by its door and is re-entered there."""

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from emulated import machine_of

from kjump.call.machine import Loaded
from kjump.call.program import Arch
from kjump.emulator.linux import GDT_LIMIT, KERNELS
from kjump.emulator.machine import EmulatedMachine
from kjump.gates import (
    DOOR_SIZE,
    FLAG_CHOOSE,
    GATE_SIZE,
    GATE_SWITCH,
    STATE_ENTERED,
    STATE_PARKED,
    Door,
    Gate,
    identity_tables,
    identity_tables_size,
    pack_page_list,
)
from kjump.kexec.mailbox import COOKIE_SIZE, Outcome, decode, encode
from kjump.kexec.plan import ARCH_X86_64, PRESERVE_CONTEXT, Plan, Segment, make_plan
from kjump.kexec.way_back import WayBack
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

KERNEL_NAMES = sorted(k for k in KERNELS if KERNELS[k].arch is Arch.X86_64)
HERE = [0x400000, 0x600000]
EFER = 0xC0000080
COOKIE = bytes(range(1, COOKIE_SIZE + 1))

# A peer that jumps as Linux does: on a stack of one page it calls the next entry, and takes the one for next time
# from the top of the stack when it is called back. It notes what it finds, at 0x800. Its EFER is without SCE.
PEER = """
    .text
    incq  0x810 + base
    movl  $0xc0000080, %ecx
    rdmsr
    btrl  $0, %eax
    wrmsr
    movq  %rsi, %r15
1:
    incq  0x808 + base
    movabs $base + 0x2000, %rsp
    PUSH_START
    call  *0x818 + base
    movq  (%rsp), %rax
    movq  %rax, 0x818 + base
    leaq  RETURNED(%rsp), %rax
    subq  $base + 0x2000, %rax
    movq  %rax, 0x820 + base
    sgdt  0x82e + base
    movl  $0xc0000080, %ecx
    rdmsr
    movl  %eax, 0x838 + base
    jmp   1b
    .org 0x2000
"""


class Peers:
    """Peers at HERE, each with its gate and door, in one loaded image on an emulated machine."""

    def __init__(
        self,
        folder: Path,
        kernel: str,
        count: int,
        push_start: bool = False,
        *,
        leave: Callable[[WayBack], Plan] | None = None,
    ) -> None:
        self.machine: EmulatedMachine = machine_of(kernel)
        self.pages = self.machine.pin(1, make_ranges(count))
        self.codes = [assemble(folder, base, push_start) for base in HERE[:count]]
        self.leave = leave
        self.loaded = Loaded(self.machine, "peers", self.plan(), None)

    def plan(self) -> Plan:
        segments = []
        surface = self.machine.surface()
        for base, code in zip(HERE, self.codes, strict=False):
            gate, door, tables = base + 0x2000, base + 0x4000, base + 0x5000
            size = identity_tables_size(surface.memory_end, huge=False)
            packed = Gate(
                flags=FLAG_CHOOSE, cr3_5level=tables, cr3_4level=tables + PAGE_SIZE, peer_entry=base,
                a_gdt_base=surface.gdt_base, a_gdt_limit=GDT_LIMIT, next_entry=HERE[0] + 0x2000,
                mailbox=self.pages.addresses[0], cookie=COOKIE,
            ).pack()  # fmt: skip
            way_out = Door(tables + PAGE_SIZE, tables, gate + GATE_SWITCH, 0xFFFF_8000_0000_0000 + base, 0x7F).pack()
            if self.leave:
                (segment,) = self.leave(WayBack(gate, tables)).segments
                way_out = segment.data
            words = code[:0x818] + struct.pack("<Q", door) + code[0x820:]
            data = words + packed + way_out + identity_tables(tables, surface.memory_end, huge=False)
            assert len(data) == 0x5000 + size and len(packed) == GATE_SIZE and len(way_out) == DOOR_SIZE
            segments.append(Segment(base, len(data), data))
        return make_plan(HERE[0] + 0x2000, segments, ARCH_X86_64 | PRESERVE_CONTEXT)

    def switch(self, index: int | None = None) -> None:
        """Go to peer `index`; None: the mailbox names none."""
        wanted = 0 if index is None else HERE[index] + 0x2000
        self.pages.write(0, encode(COOKIE, 0, 0, {}, wanted))
        self.machine.jump()

    def read(self, address: int, length: int) -> bytes:
        """Memory of a parked peer: it lies in the source pages."""
        image = self.machine.linux.image
        assert image is not None
        page = image.pairs[address // PAGE_SIZE * PAGE_SIZE]
        return self.machine.linux.ram.read(page + address % PAGE_SIZE, length)

    def gate(self, index: int) -> Gate:
        return Gate.unpack(b"".join(self.read(HERE[index] + 0x2000 + at, PAGE_SIZE) for at in (0, PAGE_SIZE)))


def make_ranges(count: int) -> RangeSet:
    return RangeSet(Range.of_size(base, 2 << 20) for base in HERE[:count])


def assemble(folder: Path, base: int, push_start: bool) -> bytes:
    text = PEER.replace("PUSH_START", "pushq 0x818 + base" if push_start else "")
    text = text.replace("RETURNED", "16" if push_start else "8")
    source, thing, binary = (folder / f"peer.{end}" for end in ("S", "o", "bin"))
    source.write_text(f"base = {base:#x}\n{text}")
    subprocess.run(["gcc", "-m64", "-c", str(source), "-o", str(thing)], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", str(thing), str(binary)], check=True)
    return binary.read_bytes()


@pytest.mark.parametrize("push_start", [False, True], ids=["as-6.12", "as-6.14"])
@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_a_peer_is_started_once_and_then_re_entered_where_it_left(
    kernel: str, push_start: bool, tmp_path: Path
) -> None:
    peers = Peers(tmp_path, kernel, 1, push_start)
    cpu = peers.machine.linux.cpu
    efer = cpu.get_msr(EFER)
    for round_number in range(1, 5):
        peers.switch()
        assert peers.machine.difference().unexplained == []
        assert cpu.get_msr(EFER) == efer
        gate = peers.gate(0)
        runs, starts, next_entry, stack = struct.unpack("<4Q", peers.read(HERE[0] + 0x808, 32))
        assert (runs, starts) == (round_number, 1)
        assert (gate.state, gate.switches) == (STATE_PARKED, round_number)
        assert gate.b_next_entry == HERE[0] + 0x4000
        assert gate.b_stack == HERE[0] + 0x2000 - (16 if push_start else 8)
        assert gate.b_gdt_base == 0xFFFF_8000_0040_0000
        if round_number > 1:
            assert struct.unpack("<I", peers.read(HERE[0] + 0x838, 4)) == (efer & ~1,)
            limit, base = struct.unpack("<HQ", peers.read(HERE[0] + 0x82E, 10))
            assert (limit, base) == (0x7F, 0xFFFF_8000_0040_0000), "the GDT that kernels before 6.13 need"
            assert next_entry == HERE[0] + 0x4000, "the kernel finds its door again as its next entry"
            assert stack == 0, "the stack is as a function that returned leaves it"


def test_the_mailbox_names_the_peer_to_enter(tmp_path: Path) -> None:
    peers = Peers(tmp_path, "6.1", 2)
    runs = [0, 0]
    for index in (1, 0, 0, 1, 1, 0):
        peers.switch(index)
        runs[index] += 1
        for i, base in enumerate(HERE):
            assert struct.unpack("<2Q", peers.read(base + 0x808, 16)) == (runs[i], min(runs[i], 1))
        assert peers.machine.difference().unexplained == []


def test_without_a_name_or_with_a_foreign_cookie_the_first_peer_is_entered(tmp_path: Path) -> None:
    peers = Peers(tmp_path, "6.12", 2)
    peers.switch()
    peers.pages.write(0, encode(bytes(COOKIE_SIZE), 0, 0, {}, HERE[1] + 0x2000))
    peers.machine.jump()
    assert struct.unpack("<2Q", peers.read(HERE[0] + 0x808, 16)) == (2, 1)
    assert struct.unpack("<2Q", peers.read(HERE[1] + 0x808, 16)) == (0, 0)


def test_a_peer_is_started_anew_from_pages_of_a_and_the_other_goes_on(tmp_path: Path) -> None:
    peers = Peers(tmp_path, "6.1", 2)
    for index in (0, 1, 0, 1):
        peers.switch(index)
    fresh, listed = (peers.machine.pin(1, make_ranges(2)) for _ in range(2))
    door = HERE[1] + 0x4000
    fresh.write(0, peers.codes[1][:0x818] + struct.pack("<Q", door) + peers.codes[1][0x820:0x1000])
    listed.write(0, pack_page_list([(fresh.addresses[0], HERE[1], 1)]))
    peers.pages.write(0, encode(COOKIE, 0, 0, {}, HERE[1] + 0x2000, listed.addresses[0]))
    peers.machine.jump()
    counted = [struct.unpack("<2Q", peers.read(base + 0x808, 16)) for base in HERE]
    assert counted == [(2, 1), (1, 1)], "its memory is new: it has been started once, and run once"
    assert peers.machine.difference().unexplained == []
    for index in (1, 0):
        peers.switch(index)
    assert [struct.unpack("<2Q", peers.read(base + 0x808, 16)) for base in HERE] == [(3, 1), (2, 1)]


def crash(way: WayBack) -> Plan:
    return way.crash_plan(Range.of_size(way.gate + GATE_SIZE, 1 << 20))


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
@pytest.mark.parametrize(("leave", "outcome"), [(WayBack.plan, Outcome.NONE), (crash, Outcome.PANIC)])
def test_the_way_back_of_a_peer_that_knows_nothing_but_where_its_gate_is(
    kernel: str, leave: Callable[[WayBack], Plan], outcome: int, tmp_path: Path
) -> None:
    peers = Peers(tmp_path, kernel, 1, leave=leave)
    peers.switch()
    assert peers.machine.difference().unexplained == []
    assert struct.unpack("<2Q", peers.read(HERE[0] + 0x808, 16)) == (1, 1)
    assert peers.gate(0).state == STATE_ENTERED
    assert decode(peers.pages.read(0)).outcome == outcome
    peers.switch()
    assert decode(peers.pages.read(0)).outcome == Outcome.GONE
    assert peers.machine.difference().unexplained == []
