"""A boot that cannot do what it was told says why: it neither tries the same for ever nor restarts for ever."""

import errno
from collections.abc import Iterator
from typing import Any

import crash
import pytest
from crash import DEVICE, Machine
from test_way_back import FakeHost, LeftError, b

from kjump.formats.superblock import State
from kjump.hibernate import resume, suspend
from kjump.hibernate.resume import PreparedResume
from kjump.init import finish_restore, look_for
from kjump.init import main as init_main
from kjump.init.roles import boot, mount_root
from kjump.kexec import loader

__all__ = ["b"]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine whose disk holds a snapshot; `kjump.rollback=` leads it to C, which is `in_c`."""
    with crash.machine() as made:
        made.then = "back"
        made.travel(kind=suspend.Kind.SNAPSHOT)
        monkeypatch.setattr(boot, "KERNEL", type("Kernel", (), {"read_bytes": staticmethod(bytes)}))
        monkeypatch.setattr(boot, "own_initrd", bytes)
        monkeypatch.setattr(resume.bzimage, "parse", lambda data: None)
        monkeypatch.setattr(PreparedResume, "plan", lambda self, report: None)

        def jump() -> None:
            made.alive("boot")
            made.leave("in C")

        monkeypatch.setattr(loader.current(), "jump", jump)
        yield made


def roll_back(machine: Machine) -> str:
    def body() -> None:
        boot._try_to_roll_back(machine.role({}), DEVICE)
        machine.leave("ordinary")

    machine.lines.clear()
    return machine._run("boot", body)


def fail_in_c(machine: Machine, error: Exception) -> None:
    machine._runs = "boot"
    with machine.open() as target, pytest.raises(type(error)), finish_restore.failures_noted(target):
        raise error


@pytest.mark.parametrize("noted", [True, False], ids=["C says why", "the power goes in C"])
def test_a_roll_back_that_failed_is_not_begun_again_by_a_boot(machine: Machine, noted: bool) -> None:
    assert roll_back(machine) == "in C"
    if noted:
        fail_in_c(machine, KeyError("page"))
    for _ in range(3):
        machine.disk.lose_power(cache=False)
        assert roll_back(machine) == "ordinary"
        why = "unexpected KeyError: 'page'" if noted else "it did not come to its end"
        assert f"failed ({why}); `kjump rollback`" in machine.lines[-1]
        assert machine.state is State.SNAPSHOT


def test_a_roll_back_that_succeeded_can_be_done_at_the_next_boot(machine: Machine) -> None:
    for count in (1, 2):
        assert roll_back(machine) == "in C"
        assert machine.disk.superblock().details.rollback_boot
        machine._runs = "boot"
        with machine.open() as target:
            target.write_superblock(finish_restore._last_superblock(target.read_superblock()))
        assert machine.disk.superblock().details.rolled_back == count
        assert not machine.disk.superblock().details.rollback_boot


def test_a_jump_that_is_refused_leaves_the_snapshot_as_it_was(machine: Machine, monkeypatch: Any) -> None:
    before = machine.disk.superblock()

    def refuse() -> None:
        raise OSError(errno.EBUSY, "no")

    monkeypatch.setattr(loader.current(), "jump", refuse)
    assert roll_back(machine) == "ordinary"
    assert "not rolled back: unexpected OSError" in machine.lines[-1]
    assert machine.disk.superblock() == before


@pytest.mark.parametrize("error", [KeyError("x"), MemoryError(), TypeError("odd")], ids=repr)
def test_whatever_a_roll_back_raises_the_machine_boots(machine: Machine, error: Exception, monkeypatch: Any) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(boot, "prepare_rollback", fail)
    assert roll_back(machine) == "ordinary"
    assert machine.state is State.SNAPSHOT


def halted(b: FakeHost, capsys: pytest.CaptureFixture[str]) -> str:
    b.left, b.steps = False, []
    with pytest.raises(LeftError):
        init_main.main()
    assert b.steps[-1] == "halt" and "restart" not in b.steps
    said = capsys.readouterr().out
    assert "this machine halts in 30 s" in said and "Traceback" not in said
    return said


def test_no_root_at_all_is_a_halt(b: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    b.line = "quiet"
    assert "no root= on the kernel command line" in halted(b, capsys)


def test_a_root_that_does_not_appear_is_a_halt(
    b: FakeHost, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    b.line = "root=/dev/no-such"
    monkeypatch.setattr(look_for, "TIMEOUT", 0.0)
    assert "the root device /dev/no-such does not appear" in halted(b, capsys)


def test_a_root_that_cannot_be_mounted_is_a_halt(
    b: FakeHost, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    b.line = "root=/dev/vdb rootfstype=xfs"
    monkeypatch.setattr(mount_root, "wait_for_device", lambda path, timeout: path)
    monkeypatch.setattr(mount_root, "mount", refuse)
    assert "/dev/vdb cannot be mounted as xfs: Invalid argument" in halted(b, capsys)


def test_an_init_that_cannot_be_started_is_a_halt(
    b: FakeHost, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOEXEC, "Exec format error")

    b.line = "root=/dev/vdb init=/bin/odd"
    monkeypatch.setattr(mount_root, "wait_for_device", lambda path, timeout: path)
    monkeypatch.setattr(mount_root, "mount", lambda *_: None)
    monkeypatch.setattr(mount_root, "switch_root", refuse)
    assert "/bin/odd on the root device /dev/vdb cannot be started: Exec format error" in halted(b, capsys)


def test_a_role_that_does_not_exist_is_a_halt(b: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    b.line = "kjump.role=third"
    assert "there is no role called third" in halted(b, capsys)


def test_memory_that_cannot_be_taken_ahead_does_not_matter(
    b: FakeHost, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block number too large for any file was an OverflowError, in PID 1 a restart at each boot."""
    b.line = f"kjump.resume=/dev/no-such kjump.resume_offset={1 << 70} root=/dev/no-such"
    monkeypatch.setattr(look_for, "TIMEOUT", 0.0)

    def fail(*_: Any, **__: Any) -> None:
        raise OverflowError("Python int too large to convert to C long")

    monkeypatch.setattr("kjump.image.reserved_memory.take_ahead", fail)
    assert "the root device /dev/no-such does not appear" in halted(b, capsys)
