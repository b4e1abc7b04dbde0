"""The contract of the kernel's own selftest, and jump-back protocol 1.00, without a gate between."""

import pytest
from emulated import Assemble, machine_of

from kjump.call.program import Arch
from kjump.emulator.report import WildError
from kjump.memory import PAGE_SIZE

AT = 0x400000

# Each entry notes that it ran, sets the entry for next time through the stack above its return address, and returns.
SELFTEST = """
    .text
first:
    incq  first_runs(%rip)
    leaq  second(%rip), %rax
    movq  %rax, 8(%rsp)
    ret
second:
    incq  second_runs(%rip)
    leaq  first(%rip), %rax
    movq  %rax, 8(%rsp)
    ret
    .org 0x800
first_runs:
    .quad 0
second_runs:
    .quad 0
"""

# Jumps to the caller's real entry, with its own entry for next time in EDI.
REAL_ENTRY = """
    .text
    .code32
first:
    incl  0x400800
    movl  %edi, %eax
    movl  $second, %edi
    addl  $0x400000, %edi
    jmp   *%eax
second:
    incl  0x400804
    movl  %edi, %eax
    movl  $0x400000, %edi
    jmp   *%eax
    .org 0x800
    .quad 0
"""

# Returns as a C function does: that leads to the helper entry, and next time to where it was called.
HELPER_ENTRY = """
    .text
    .code32
    incl  0x400800
    ret
    .org 0x800
    .quad 0
"""


def runs(machine: object, size: int) -> tuple[int, int]:
    linux = machine.linux  # type: ignore[attr-defined]
    source = linux.image.pairs[AT]
    return linux.ram.word(source + 0x800, size), linux.ram.word(source + 0x800 + size, size)


@pytest.mark.parametrize("kernel", ["6.14", "6.12"])
def test_the_selftests_contract_in_both_flavours_of_the_stack(kernel: str, assemble: Assemble) -> None:
    machine = machine_of(kernel, cet=False)
    with machine.load_bare(assemble(SELFTEST, Arch.X86_64, AT)) as loaded:
        counted = []
        for _ in range(4):
            loaded.call()
            counted.append(runs(machine, 8))
            found = machine.difference()
            assert found.unexplained == []
            image = machine.linux.image
            assert image is not None
            # Before 6.14 the word above the return address lies in a page that is not the kernel's to give.
            assert found.program == ([] if kernel == "6.14" else [image.swap + PAGE_SIZE])
    assert counted == [(1, 0), (1, 1), (2, 1), (2, 2)]


def test_a_kernel_that_loads_ss_first_needs_the_gates_cure(assemble: Assemble) -> None:
    with (
        machine_of("6.1", cet=False).load_bare(assemble(SELFTEST, Arch.X86_64, AT)) as loaded,
        pytest.raises(WildError, match=r"on the way back .* general protection fault"),
    ):
        loaded.call()


def test_protocol_1_00_by_the_real_entry(assemble: Assemble) -> None:
    machine = machine_of("1.00")
    with machine.load_bare(assemble(REAL_ENTRY, Arch.I386, AT)) as loaded:
        counted = []
        for _ in range(4):
            loaded.call()
            counted.append(runs(machine, 4))
            assert machine.difference().unexplained == []
    assert counted == [(1, 0), (1, 1), (2, 1), (2, 2)]


def test_protocol_1_00_by_the_helper_entry(assemble: Assemble) -> None:
    machine = machine_of("1.00")
    with machine.load_bare(assemble(HELPER_ENTRY, Arch.I386, AT)) as loaded:
        for time in (1, 2, 3):
            loaded.call()
            assert runs(machine, 4) == (time, 0)
            assert machine.difference().unexplained == []
            assert machine.linux.image is not None
            assert machine.linux.image.start == AT
