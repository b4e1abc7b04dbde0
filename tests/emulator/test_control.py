"""What a kernel takes for granted when it is gone back to: CR0.WP where CR4.CET is to be set, and EFER."""

from pathlib import Path

import pytest
from emulated import Assemble, Compile, example, machine_of
from test_contract import AT, SELFTEST

from kjump.call.program import Arch
from kjump.emulator.cpu import CR0_WP, CR4_CET, Cpu
from kjump.emulator.linux import KERNELS
from kjump.emulator.ram import Ram
from kjump.emulator.report import WildError

NAMES_64 = sorted(k for k in KERNELS if KERNELS[k].arch is Arch.X86_64)
EFER, U_CET, S_CET = 0xC0000080, 0x6A0, 0x6A2
NXE = 1 << 11


def cpu_at(text: str, arch: Arch, assemble: Assemble, cr0: int, cr4: int) -> Cpu:
    """A CPU with `text` at 0x1000 that has run it up to its end, or to a fault."""
    ram = Ram(1 << 20)
    code = assemble(text, arch, 0x1000).segments[0].data
    ram.write(0x1000, code)
    cpu = Cpu(arch, ram)
    cpu.set("CR0", int(cpu.get("CR0")) & ~CR0_WP | cr0)
    cpu.set("CR4", int(cpu.get("CR4")) | cr4)
    cpu.run(0x1000, [0x1000 + len(code)], 10)
    return cpu


@pytest.mark.parametrize("arch", list(Arch))
@pytest.mark.parametrize(
    ("register", "instruction", "cr0", "cr4"),
    [("cr4", "bts $23,", 0, 0), ("cr0", "btr $16,", CR0_WP, CR4_CET)],
    ids=["CET while WP is clear", "WP clear while CET is set"],
)
def test_cet_without_write_protection_is_a_fault(
    arch: Arch, register: str, instruction: str, cr0: int, cr4: int, assemble: Assemble
) -> None:
    a = "%rax" if arch is Arch.X86_64 else "%eax"
    code = f"xor %ecx, %ecx\nmov %{register}, {a}\n{instruction} {a}\nmov {a}, %{register}\ninc %ecx\nnop\n"
    cpu = cpu_at(code, arch, assemble, cr0, cr4)
    assert cpu.exception == 13
    assert cpu.pc == 0x1000 + (10 if arch is Arch.X86_64 else 9), "at the instruction, which has done nothing"
    assert cpu.get("ECX") == 0
    assert (int(cpu.get("CR0")) & CR0_WP, int(cpu.get("CR4")) & CR4_CET) == (cr0, cr4)


def test_in_the_right_order_cet_is_switched_on_and_off(assemble: Assemble) -> None:
    code = "".join(
        f"mov %{register}, %rax\n{change}, %rax\nmov %rax, %{register}\n"
        for register, change in (("cr0", "bts $16"), ("cr4", "bts $23"), ("cr4", "btr $23"), ("cr0", "btr $16"))
    )
    cpu = cpu_at(code + "nop\n", Arch.X86_64, assemble, 0, 0)
    assert cpu.exception is None
    assert not int(cpu.get("CR0")) & CR0_WP and not int(cpu.get("CR4")) & CR4_CET


@pytest.mark.parametrize("kernel", NAMES_64)
def test_a_kernel_with_cet_comes_back_through_the_gate(kernel: str) -> None:
    machine = machine_of(kernel)
    with machine.load(example("add", kernel)) as loaded:
        for _ in range(2):
            assert loaded.call(2, 40).value == 42
            cpu = machine.linux.cpu
            assert int(cpu.get("CR4")) & CR4_CET and int(cpu.get("CR0")) & CR0_WP


def test_a_function_may_leave_cet_switched_on(compile_c: Compile) -> None:
    set_bit = """
    uint64_t value;
    __asm__ volatile("mov %%cr0, %0; bts $16, %0; mov %0, %%cr0" : "=r"(value));
    __asm__ volatile("mov %%cr4, %0; bts $23, %0; mov %0, %%cr4" : "=r"(value));
    return 7;
    """
    with machine_of("6.12").load(compile_c(set_bit)) as loaded:
        assert [loaded.call().value for _ in range(2)] == [7, 7]


def test_without_a_gate_a_kernel_with_cet_is_lost(assemble: Assemble) -> None:
    with (
        machine_of("6.14").load_bare(assemble(SELFTEST, Arch.X86_64, AT)) as loaded,
        pytest.raises(WildError, match=r"on the way back .* general protection fault"),
    ):
        loaded.call()


@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_efer_is_as_the_kernel_left_it(kernel: str, compile_c: Compile) -> None:
    machine = machine_of(kernel)
    cpu = machine.linux.cpu
    before = cpu.get_msr(EFER)
    body = (
        "uint32_t low, high;\n"
        f'__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"({EFER:#x}));\n'
        f'__asm__ volatile("wrmsr" : : "c"({EFER:#x}), "a"(low ^ {NXE}), "d"(high));\n'
        f'__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"({EFER:#x}));\n'
        "return low;"
    )
    with machine.load(compile_c(body, kernel)) as loaded:
        for _ in range(2):
            assert loaded.call().value & NXE == before & NXE ^ NXE
            assert cpu.get_msr(EFER) == before


@pytest.mark.parametrize("has_cet", [False, True])
def test_nothing_of_cet_is_left_where_the_cpu_has_it(has_cet: bool, tmp_path: Path) -> None:
    machine = machine_of("6.12", cet=has_cet)
    machine.linux.watch.trace = True
    with machine.load(example("add", "6.12")) as loaded:
        loaded.call(1, 2)
    written = [code for _, code in machine.linux.trace if code == b"\x0f\x30"]
    assert len(written) == (2 if has_cet else 0), "IA32_U_CET and IA32_S_CET"
