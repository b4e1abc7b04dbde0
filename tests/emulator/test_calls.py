"""Calls on the emulated machine: every kind of kernel, state, bytes, what A finds again."""

import random

import pytest
from emulated import Compile, example, machine_of

from kjump.call.machine import FaultError
from kjump.call.program import Arch, Preserve, Program
from kjump.emulator import report
from kjump.emulator.linux import KERNELS
from kjump.emulator.machine import EmulatedMachine
from kjump.errors import PlanError, UsageError
from kjump.kexec.plan import Segment

KERNEL_NAMES = sorted(KERNELS)
WIDE = [k for k in KERNEL_NAMES if KERNELS[k].arch is Arch.X86_64]


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_a_function_is_called_and_returns(kernel: str) -> None:
    with machine_of(kernel).load(example("add", kernel)) as loaded:
        assert loaded.call(2, 40).value == 42
        assert loaded.call(-1, 1 << 64, 3).value == 2
        assert loaded.call().value == 0


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_state_is_kept_between_calls_and_lost_with_the_load(kernel: str) -> None:
    machine = machine_of(kernel)
    program = example("counter", kernel)
    with machine.load(program) as loaded:
        results = [loaded.call(n) for n in (5, 7, 1, 1 << 40)]
    assert [r.value for r in results] == [5, 12, 13, 13 + (1 << 40)]
    assert [r.calls for r in results] == [1, 2, 3, 4]
    with machine.load(program) as loaded:
        assert loaded.call(1).value == 1


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_bytes_go_in_and_come_out(kernel: str) -> None:
    text = random.Random(1).randbytes(20_000)
    with machine_of(kernel).load(example("upper", kernel)) as loaded:
        result = loaded.call(text)
        assert (result.value, result.output) == (len(text), text.upper())
        assert loaded.call(b"").output == b""


def test_more_bytes_than_a_call_takes_are_refused() -> None:
    with machine_of("6.12").load(example("upper", "6.12")) as loaded:
        with pytest.raises(UsageError, match="64 KiB"):
            loaded.call(bytes(65 << 10))
        with pytest.raises(UsageError, match="64 numbers"):
            loaded.call(*range(65))


def test_output_beyond_the_buffer_is_cut_off_and_said_so(compile_c: Compile) -> None:
    program = compile_c(
        "static char text[70000]; memset(text, 'x', sizeof(text)); text[1] = 'y';"
        "kjump_put(text, 40000); kjump_put(text, 30000); return 7;"
    )
    with machine_of("6.12").load(program) as loaded:
        result = loaded.call()
    assert result.value == 7
    assert result.cut_off
    assert result.output == (b"xy" + b"x" * 39998) + (b"xy" + b"x" * 25534)


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_printing_and_arithmetic(kernel: str, compile_c: Compile) -> None:
    program = compile_c(
        'kjump_print("%d %u %x %5d|%05x %s %c %llu %%\\n", -5, 5u, 0xabcu, 42, 0x1f, "word", \'c\','
        " 12345678901234567890ull); return 12345678901234567890ull / args[0] % 1000003;",
        kernel,
    )
    with machine_of(kernel).load(program) as loaded:
        result = loaded.call(7)
    assert result.output == b"-5 5 abc    42|0001f word c 12345678901234567890 %\n"
    assert result.value == 12345678901234567890 // 7 % 1000003


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_words_that_need_relocation(kernel: str, compile_c: Compile) -> None:
    program = compile_c(
        'static const char *volatile words[] = { "zero", "one", "two" };'
        "kjump_put(words[args[0]], strlen(words[args[0]])); return 0;",
        kernel,
    )
    assert program.relocations
    with machine_of(kernel).load(program) as loaded:
        assert [loaded.call(i).output for i in range(3)] == [b"zero", b"one", b"two"]


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_the_fake_image_calls_code_that_lies_in_memory(kernel: str) -> None:
    machine = machine_of(kernel)
    with machine.install(example("counter", kernel)) as loaded:
        assert [s.memory_size for s in loaded.plan.segments] == [0]
        assert machine.linux.image is not None
        assert not machine.linux.image.pairs
        assert [loaded.call(n).value for n in (5, 7)] == [5, 12]


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_memory_is_as_before_but_for_what_must_differ(kernel: str) -> None:
    machine = machine_of(kernel)
    with machine.load(example("counter", kernel)) as loaded:
        loaded.call(1)
        found = machine.difference()
        assert machine.linux.image is not None
        assert found.unexplained == []
        assert found.program == []
        assert found.state
        assert set(found.state) <= set(machine.linux.image.pairs.values())
        assert len(found.mailbox) == 1
        before = machine.linux.ram.snapshot()
        loaded.call(2)
        assert set(machine.linux.ram.differing_pages(before)) <= {
            *found.kernel, *found.mailbox, *machine.linux.image.pairs.values()
        }  # fmt: skip


def test_what_a_program_writes_outside_its_segments_is_listed(compile_c: Compile) -> None:
    program = compile_c("*(volatile uint64_t *)args[0] = ~*(volatile uint64_t *)args[0]; return 0;")
    machine = machine_of("6.12")
    with machine.load(program) as loaded:
        victim = next(p for p in iter(machine.linux.pages.take, None) if p not in loaded.plan.destinations)
        loaded.call(victim + 8)
        assert machine.difference().program == [victim]
        assert machine.difference().unexplained == []


def registers(machine: EmulatedMachine) -> dict[str, object]:
    cpu = machine.linux.cpu
    names = ["CR0", "CR3", "CR4", "EFLAGS", "CS", "DS", "ES", "FS", "GS", "SS", "GDTR", "IDTR", "MXCSR", "FPCW", "FPSW"]
    names += [f"ST{i}" for i in range(8)]
    if machine.linux.arch is Arch.X86_64:
        names += ["RBX", "RBP", "R12", "R13", "R14", "R15", "FS_BASE", "GS_BASE"]
        names += [f"XMM{i}" for i in range(16)]
    else:
        names += ["EBX", "ESI", "EDI", "EBP", *(f"XMM{i}" for i in range(8))]
    return {name: cpu.get(name) for name in names}


def scramble(machine: EmulatedMachine) -> None:
    """Give A values to lose, in every register that a program might use."""
    cpu = machine.linux.cpu
    noise = random.Random(7)
    wide = machine.linux.arch is Arch.X86_64
    for name in ("RBX", "RBP", "R12", "R13", "R14", "R15") if wide else ("EBX", "ESI", "EDI", "EBP"):
        cpu.set(name, noise.getrandbits(60 if wide else 31))
    for i in range(16 if wide else 8):
        cpu.set(f"XMM{i}", noise.getrandbits(128))
    cpu.set("MXCSR", 0x9FC0)
    cpu.set("FPCW", 0x27F)
    if wide:
        cpu.set("FS_BASE", 0x7000_1234_5000)
        cpu.set("GS_BASE", 0xFFFF_8880_0012_3000)


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_registers_come_back_bit_for_bit_from_a_program_that_uses_sse(kernel: str, compile_c: Compile) -> None:
    body = (
        "volatile double sum = 0.5; for (size_t i = 0; i < n; i++) sum += 1.0 / (double)(int64_t)args[i];"
        '__asm__ volatile("fld1; fldpi; faddp; fstp %%st(0)" ::: "memory");'
        '__asm__ volatile("mov %0, %%fs; mov %0, %%gs" :: "r"((uint16_t)0));'
        "return (uint64_t)(sum * 1000);"
    )
    everything = Preserve.FPU | Preserve.DESCRIPTORS
    machine = machine_of(kernel)
    with machine.load(compile_c(body, kernel, everything), preserve=everything) as loaded:
        loaded.call(1)  # A loads its segment registers in its first jump
        scramble(machine)
        before = registers(machine)
        assert loaded.call(2, 4).value == 1250
        assert registers(machine) == before


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_without_the_flag_sse_is_not_to_be_had(kernel: str) -> None:
    program = example("mean", kernel, Preserve.FPU)
    with machine_of(kernel).load(program) as loaded, pytest.raises(FaultError, match="invalid instruction"):
        loaded.call(1, 2)


def test_two_programs_one_after_the_other_leave_no_page_behind() -> None:
    machine = machine_of("6.12")
    free = len(machine.linux.pages)
    for name in ("add", "counter"):
        with machine.load(example(name, "6.12")) as loaded:
            loaded.call(1)
            assert len(machine.linux.pages) < free
        assert len(machine.linux.pages) == free
    with machine.install(example("add", "6.12")) as loaded:
        loaded.call(1)
        assert len(machine.linux.pages) < free
    assert len(machine.linux.pages) == free


def test_the_trace_and_the_memory_map_show_the_program(compile_c: Compile) -> None:
    machine = machine_of("6.12")
    machine.linux.watch.trace = True
    with machine.load(compile_c("return *(volatile uint64_t *)args[0];")) as loaded:
        page = machine.pin(1, loaded.plan.destinations).addresses[0]
        loaded.call(page)
        lines = report.memory_map(machine.linux)
        program = loaded.plan.segments[1].range
    assert f"{page:#010x}-{page + 0xFFF:#010x} r-" in lines
    assert any(line.endswith("w gate") for line in lines)
    traced = [address for address, _ in machine.linux.trace]
    assert traced[0] == loaded.plan.entry
    assert any(address in program for address in traced)
    assert report.disassemble(machine.linux, *machine.linux.trace[0], 1)[0].startswith(f"{loaded.plan.entry:#x}: jmp")


def test_a_program_for_another_architecture_is_refused() -> None:
    with pytest.raises(UsageError, match="not for x86_64"):
        machine_of("6.12").load_bare(example("add", "1.00").at(0x400000))


def test_a_program_that_needs_more_than_there_is() -> None:
    segment = Segment(0, 16 << 20, b"\xc3", "big")
    with pytest.raises(PlanError, match=r"no .* of free RAM"):
        machine_of("6.12", memory=8 << 20).load(Program(Arch.X86_64, 0, (segment,), "big", movable=True))
