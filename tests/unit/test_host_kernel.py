"""What is done around the system calls."""

from pathlib import Path

import pytest

from kjump.errors import HostError
from kjump.kexec import syscalls


def test_grace_periods_are_hurried_for_the_jump_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = tmp_path / "rcu_expedited"
    switch.write_text("0\n")
    monkeypatch.setattr(syscalls, "_RCU_EXPEDITED", switch)
    during = []

    def reboot(_command: int) -> int:
        during.append(switch.read_text() if switch.exists() else "none")
        return len(during) - 1

    monkeypatch.setattr(syscalls, "_reboot", reboot)
    syscalls.jump()
    assert (during, switch.read_text()) == (["1"], "0\n")
    with pytest.raises(HostError):  # the kernel refuses
        syscalls.jump()
    assert (during, switch.read_text()) == (["1", "1"], "0\n")
    switch.unlink()  # a kernel without that
    with pytest.raises(HostError):
        syscalls.jump()
    assert during[-1] == "none" and not switch.exists()
