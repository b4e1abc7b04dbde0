"""The emulated kernel's load: its list of pages, its refusals, and jumps over random segments."""

import errno

import pytest
from emulated import MIB, machine_of
from hypothesis import given, settings
from hypothesis import strategies as st

from kjump.call.program import Arch
from kjump.emulator.kimage import Builder, Image, Pages
from kjump.emulator.linux import KERNELS, EmulatedLinux, Setup
from kjump.emulator.ram import Ram
from kjump.emulator.report import WildError
from kjump.kexec.kimage import walk
from kjump.kexec.plan import ARCH_I386, ARCH_X86_64, ON_CRASH, PRESERVE_CONTEXT, SEGMENT_MAX, Plan, Segment
from kjump.kexec.refusals import RefusedError
from kjump.memory import PAGE_SIZE
from kjump.ranges import Range, RangeSet

RET = b"\xc3"
SEGMENTS = st.lists(
    st.tuples(st.integers(0x100, 0xC00), st.integers(0, 48), st.binary(max_size=2 * PAGE_SIZE)), min_size=1, max_size=16
)


def disjoint(drawn: list[tuple[int, int, bytes]]) -> tuple[Segment, ...]:
    """Segments of the drawn frames and lengths, less those that overlap an earlier one."""
    taken = RangeSet()
    found = []
    for frame, count, data in drawn:
        area = Range.of_size(frame * PAGE_SIZE, count * PAGE_SIZE)
        if (taken & RangeSet([area])).size == 0:
            taken |= RangeSet([area])
            found.append(Segment(area.start, area.size, data[: area.size], f"at {frame:#x}"))
    return tuple(found)


def build(plan: Plan, ram: Ram, pages: Pages) -> Image:
    return Builder(plan, ram, pages).build(4)


@given(drawn=SEGMENTS, seed=st.integers(0, 1 << 32), mib=st.sampled_from([8, 12, 16]))
def test_what_is_built_for_any_segments(drawn: list[tuple[int, int, bytes]], seed: int, mib: int) -> None:
    ram = Ram(mib * MIB)
    pages = Pages(ram.usable, seed)
    free = len(pages)
    plan = Plan(0x100000, disjoint(drawn), ARCH_X86_64 | PRESERVE_CONTEXT)
    try:
        image = build(plan, ram, pages)
    except RefusedError as error:
        assert error.number == errno.ENOMEM
        assert len(pages) == free
        return
    wanted = [p for s in plan.segments for p in range(s.address, s.range.end, PAGE_SIZE)]
    assert sorted(image.pairs) == sorted(wanted)
    for destination, source in image.pairs.items():
        assert source == destination or source not in plan.destinations
    outside = [*image.control, image.swap, *image.list_pages]
    assert not any(p in plan.destinations for p in outside)
    held = image.pages
    assert len(held) == len(set(held)) == free - len(pages)
    for segment in plan.segments:
        loaded = b"".join(
            ram.read(image.pairs[p], PAGE_SIZE) for p in range(segment.address, segment.range.end, PAGE_SIZE)
        )
        assert loaded == segment.data.ljust(segment.memory_size, b"\0")
    runs = walk(ram.read, image.head)
    paired = {(r.destination + i) * PAGE_SIZE: (r.source + i) * PAGE_SIZE for r in runs for i in range(r.pages)}
    assert paired == image.pairs


@settings(max_examples=25)
@given(drawn=SEGMENTS, seed=st.integers(0, 1 << 32), kernel=st.sampled_from(["6.14", "1.00"]))
def test_a_jump_over_any_segments_gives_all_memory_back(
    drawn: list[tuple[int, int, bytes]], seed: int, kernel: str
) -> None:
    machine = machine_of(kernel, seed=seed, cet=False)
    code = Segment(0xD00000, PAGE_SIZE, RET, "code")
    arch = KERNELS[kernel].arch
    plan = Plan(code.address, (*disjoint(drawn[: SEGMENT_MAX - 1]), code), arch.flag | PRESERVE_CONTEXT)
    machine.load_plan(plan)
    machine.jump()
    found = machine.difference()
    assert found.unexplained == found.program == found.mailbox == []
    image = machine.linux.image
    assert image is not None
    assert image.start == code.address
    destinations_changed = set(found.kernel + found.state) & {
        p for p in image.pairs if image.pairs[p] != p and p not in machine.linux.tables and p != machine.linux.stack
    }
    assert not destinations_changed
    machine.jump()
    assert machine.difference().unexplained == []


def test_pages_used_in_place_occur() -> None:
    ram = Ram(8 * MIB)
    plan = Plan(0, (Segment(0x100000, 3 * MIB, b"x" * 3 * MIB),), ARCH_X86_64 | PRESERVE_CONTEXT)
    image = build(plan, ram, Pages(ram.usable, 3))
    assert any(s == d for d, s in image.pairs.items())
    assert any(s != d for d, s in image.pairs.items())
    assert len(image.list_pages) == 2


def request(*segments: Segment, entry: int = 0x200000, flags: int = ARCH_X86_64 | PRESERVE_CONTEXT) -> Plan:
    return Plan(entry, segments, flags)


GOOD = Segment(0x200000, PAGE_SIZE, RET)
MANY = tuple(Segment(0x200000 + 2 * i * PAGE_SIZE, PAGE_SIZE, RET) for i in range(17))


@pytest.mark.parametrize(
    ("plan", "setup", "number"),
    [
        (request(GOOD), {"privileged": False}, errno.EPERM),
        (request(GOOD), {"without": frozenset({"kexec"})}, errno.ENOSYS),
        (request(GOOD), {"without": frozenset({"kexec_jump"})}, errno.EINVAL),
        (request(*MANY), {}, errno.EINVAL),
        (request(GOOD, Segment(0x200000, 2 * PAGE_SIZE, b"")), {}, errno.EINVAL),
        (request(Segment(0x200000, PAGE_SIZE, b"x" * 5000)), {}, errno.EINVAL),
        (request(Segment(0x200010, PAGE_SIZE, RET)), {}, errno.EADDRNOTAVAIL),
        (request(Segment(0x200000, 100, RET)), {}, errno.EADDRNOTAVAIL),
        (request(Segment(0x200000, 9 * MIB, RET)), {}, errno.EINVAL),
        (request(GOOD, flags=ARCH_I386 | PRESERVE_CONTEXT), {}, errno.EINVAL),
        (request(GOOD, flags=ARCH_X86_64 | 0x80), {}, errno.EINVAL),
        (request(GOOD, flags=ARCH_X86_64 | ON_CRASH), {}, errno.EADDRNOTAVAIL),
        (request(Segment(1 << 50, PAGE_SIZE, RET)), {}, errno.EADDRNOTAVAIL),
    ],
)
def test_loads_are_refused_as_linux_refuses_them(plan: Plan, setup: dict[str, object], number: int) -> None:
    linux = EmulatedLinux(Setup(KERNELS["6.12"], memory=16 * MIB, **setup))  # type: ignore[arg-type]
    free = len(linux.pages)
    with pytest.raises(RefusedError, match=errno.errorcode[number]) as refused:
        linux.load(plan)
    assert refused.value.number == number
    assert linux.image is None
    assert len(linux.pages) == free


def test_memory_runs_out_before_the_limit_of_half_of_it() -> None:
    linux = EmulatedLinux(Setup(KERNELS["6.12"], memory=16 * MIB))
    while len(linux.pages) > 100:
        linux.pages.take()
    with pytest.raises(RefusedError) as refused:
        linux.load(request(Segment(0x200000, MIB, RET)))
    assert refused.value.number == errno.ENOMEM
    assert len(linux.pages) == 100


@pytest.mark.parametrize(
    ("setup", "number", "why"),
    [
        ({"refuses": frozenset({"task"})}, errno.EBUSY, "refused to freeze"),
        ({"refuses": frozenset({"device"})}, errno.EIO, "undone the jump and nothing is harmed"),
    ],
)
def test_a_jump_that_the_kernel_unwinds_harms_nothing(setup: dict[str, object], number: int, why: str) -> None:
    linux = EmulatedLinux(Setup(KERNELS["6.14"], memory=16 * MIB, **setup))  # type: ignore[arg-type]
    linux.load(request(GOOD))
    before = linux.ram.snapshot()
    with pytest.raises(RefusedError, match=why) as refused:
        linux.jump()
    assert refused.value.number == number
    assert linux.ram.differing_pages(before) == []
    assert not linux.busy


def test_a_second_caller_finds_it_busy_and_nothing_loaded_is_said() -> None:
    linux = EmulatedLinux(Setup(KERNELS["6.14"], memory=16 * MIB))
    with pytest.raises(RefusedError, match="nothing is loaded"):
        linux.jump()
    linux.load(request(GOOD))
    linux.busy = True
    for call in (linux.jump, lambda: linux.load(request(GOOD))):
        with pytest.raises(RefusedError) as refused:
            call()
        assert refused.value.number == errno.EBUSY


def test_a_crash_image_is_loaded_in_place_and_entered_without_swapping() -> None:
    region = Range(0x400000, 0x500000)
    linux = EmulatedLinux(Setup(KERNELS["6.12"], memory=16 * MIB, crash=region))
    code = bytes.fromhex("66c705f70f00003412f4")  # movw $0x1234, 0xff7(%rip): at +0x1000; hlt
    plan = request(
        Segment(0x400000, PAGE_SIZE, code), Segment(0x401000, PAGE_SIZE, b""), entry=0x400000, flags=ARCH_X86_64 | 1
    )
    linux.load(plan)
    assert linux.ram.read(0x400000, len(code)) == code
    assert linux.image is None
    with pytest.raises(WildError, match="the machine halted"):
        linux.crash()
    assert linux.ram.word(0x401000, 2) == 0x1234
    assert linux.ram.read(0x400000, len(code)) == code
    assert linux.crash_image is not None
    assert linux.crash_image.pairs == {}


def test_a_load_without_the_flag_copies_and_does_not_come_back() -> None:
    linux = EmulatedLinux(Setup(KERNELS["6.12"], memory=16 * MIB))
    linux.load(request(Segment(0x200000, PAGE_SIZE, b"\xf4"), flags=ARCH_X86_64))
    with pytest.raises(WildError, match="halted"):
        linux.jump()
    assert linux.ram.read(0x200000, 1) == b"\xf4"
    assert linux.image is not None
    assert linux.ram.read(linux.image.pairs[0x200000], 1) == b"\xf4"
    assert Arch.X86_64.bits == 64
