"""The console log of a virtual machine: the kernel prints in the midst of what programs write."""

import pytest

from kjump.lab.qemu import without_kernel_lines


@pytest.mark.parametrize("at", range(0, 30, 7))
def test_a_line_is_put_together_again(at: int) -> None:
    line = "kjump: not resumed: [12] is no reason\r\n"
    kernel = "[    5.386292] EXT4-fs (vda): mounted filesystem\r\n[   10.000001] second\r\n"
    assert without_kernel_lines(line[:at] + kernel + line[at:]) == line
