"""QEMU's arguments for a virtual machine."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from kjump.lab.machine.qemu_config import BadBlock, VirtualMachineConfig


def values(arguments: list[str], option: str) -> list[str]:
    return [value for name, value in pairwise(arguments) if name == option]


def test_disks_come_in_their_order_and_only_those_with_bad_blocks_fail() -> None:
    bad = (BadBlock(1, "write", 8 << 20), BadBlock(1, "read", 512))
    config = VirtualMachineConfig(
        Path("bzImage"), None, "quiet", disks=(Path("/x/a,b.img"), Path("/x/c.img")), bad_blocks=bad
    )
    first, second = values(config.arguments(Path("/tmp/vm")), "-drive")
    assert first == "file=/x/a,,b.img,format=raw,if=none,id=disk0,cache=none,aio=threads"
    assert "file.driver=blkdebug" in second and "file.image.filename=/x/c.img" in second
    assert "file.inject-error.0.iotype=write" in second and "file.inject-error.0.sector=16384" in second
    assert "file.inject-error.1.iotype=read" in second and "file.inject-error.1.sector=1" in second
    assert values(config.arguments(Path("/tmp/vm")), "-initrd") == []


def test_a_saved_state_is_read_by_a_shell() -> None:
    config = VirtualMachineConfig(Path("bzImage"), Path("initrd"), "quiet", incoming=Path("/x y/state"))
    arguments = config.arguments(Path("/tmp/vm"))
    assert values(arguments, "-incoming") == ["exec:cat '/x y/state'"]
    assert values(arguments, "-append") == ["quiet no_timer_check"]
    assert sum(value.startswith("socket,") for value in values(arguments, "-chardev")) == 3
