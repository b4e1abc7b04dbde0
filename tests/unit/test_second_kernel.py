"""What B and C are told on their command lines."""

import subprocess

import pytest
from test_formats_bzimage import make

from kjump import _core
from kjump.errors import PlanError
from kjump.formats import bzimage, cpio
from kjump.initramfs.contents import unpacked_size, without_kernel
from kjump.kexec import second_kernel
from kjump.kexec.window import lay_out
from kjump.ranges import Range

MIB = 1 << 20


def test_options_of_the_machine_are_passed_on_those_of_the_system_are_not() -> None:
    line = second_kernel.command_line("console=ttyS0,115200 root=/dev/sda2 acpi=noirq quiet rw", "restorer", la57=True)
    assert line == (
        "console=ttyS0,115200 acpi=noirq quiet rcupdate.rcu_expedited=1 iomem=relaxed nokaslr panic=5 "
        "kjump.role=restorer"
    )


@pytest.mark.parametrize("own", ["loglevel=7", "debug", "ignore_loglevel", "quiet"])
def test_who_says_how_much_to_print_gets_that(own: str) -> None:
    words = second_kernel.command_line(own, "restorer", la57=False).split()
    assert words.count("quiet") == (own == "quiet")
    assert own in words and "no5lvl" in words


def test_they_are_quiet_otherwise_and_need_not_measure_what_is_known() -> None:
    known = {"loops_per_jiffy": 10379576, "tsc_khz": 2594894}
    words = second_kernel.command_line("root=/dev/sda2", "restorer", la57=True, **known).split()
    assert {"quiet", "lpj=10379576", "tsc_early_khz=2594894"} <= set(words)
    assert not [
        w for w in second_kernel.command_line("", "restorer", la57=True).split() if w.startswith(("lpj", "tsc"))
    ]


def test_no_more_cpus_are_started_than_a_window_has_memory_for() -> None:
    assert "nr_cpus" not in second_kernel.command_line("", "second", la57=True, cpus=32)
    for role in ("second", "restorer"):
        assert "nr_cpus=32" in second_kernel.command_line("", role, la57=True, cpus=33).split()


@pytest.mark.parametrize("size", [0, 100, 255, 256, 300, 65791, 65792, 3 * MIB + 17])
def test_the_unpacked_size_is_what_the_frame_says(size: int) -> None:
    assert unpacked_size(_core.compress_bytes(bytes(size), 3)) == size


def test_sizes_of_what_other_programs_compressed_and_of_what_is_not_compressed() -> None:
    data = bytes(1 << 20)
    known = subprocess.run(
        ["zstd", "-q", "-c", f"--stream-size={len(data)}"], input=data, capture_output=True, check=True
    )
    assert unpacked_size(known.stdout) == len(data)
    unknown = subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout
    assert unpacked_size(unknown) == 3 * len(unknown)
    assert unpacked_size(b"070701" + bytes(100)) == 106


def test_the_kernel_is_left_out_unless_something_is_compressed() -> None:
    rest = cpio.write([cpio.regular("init", b"#!")])
    whole = cpio.write([cpio.regular("init", b"#!"), cpio.regular("boot/vmlinuz", bytes(9000))])
    assert [e.name for e in cpio.iterate(without_kernel(whole))] == ["init", "boot"]
    assert without_kernel(rest) == rest
    for packed in (_core.compress_bytes(whole, 3), cpio.join([rest, _core.compress_bytes(whole, 3)])):
        assert without_kernel(packed) == packed


def test_a_window_in_which_the_initramfs_could_not_be_unpacked_is_refused_with_the_size_it_needs() -> None:
    kernel = bzimage.parse(make(init_size=16 * MIB))
    initrd = _core.compress_bytes(bytes(18 * MIB), 3)

    def require(size: int) -> None:
        window = Range.of_size(32 * MIB, size * MIB)
        second_kernel.require_room(
            kernel, initrd, lay_out(window, elf_headers_size=4096, memory_end=4 << 30, huge=True)
        )

    with pytest.raises(PlanError, match="give 53 MiB"):
        require(48)
    require(54)
