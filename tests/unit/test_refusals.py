"""Refusals: a sentence for each error number, and what is refused before any system call."""

import errno
import os
import platform

import pytest

from kjump.call.host import HostMachine
from kjump.errors import HostError
from kjump.kexec.refusals import refused_jump, refused_load, refused_load_file, refused_unload


@pytest.mark.parametrize("name", ["EPERM", "EBUSY", "EINVAL", "EFAULT", "EADDRNOTAVAIL", "ENOMEM", "ENOSYS"])
def test_a_refused_load_has_number_reason_and_request(name: str) -> None:
    number = getattr(errno, name)
    error = refused_load(number, "entry 0x1000")
    assert error.number == number
    assert error.exit_status == 1
    text = str(error)
    assert text.startswith(f"kexec_load refused: {name}, {os.strerror(number)} (")
    assert text.endswith("Asked: entry 0x1000")


def test_a_refused_jump_says_whether_it_was_undone() -> None:
    assert "refused to freeze" in str(refused_jump(errno.EBUSY))
    assert "nothing is loaded" in str(refused_jump(errno.EINVAL))
    assert "the kernel has undone the jump" in str(refused_jump(errno.EIO))
    assert "CONFIG_KEXEC_FILE" in str(refused_load_file(errno.ENOSYS, "a kernel"))
    assert "unload" in str(refused_unload(errno.EBUSY))


def test_a_machine_that_cannot_call_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(HostError, match="needs root"):
        HostMachine()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(HostError, match="not on aarch64"):
        HostMachine()
