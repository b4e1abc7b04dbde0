"""What virtual machines leave behind: their console logs, and why they ended."""

import socket
import tempfile
from pathlib import Path

import pytest

from kjump.cli.logged_folder import LoggedFolder
from kjump.errors import FormatError, KjumpError, LabError
from kjump.lab.machine.console import without_kernel_lines
from kjump.lab.machine.guest_channel import GuestChannel, LostMachineError


@pytest.mark.parametrize("at", range(0, 30, 7))
def test_a_line_is_put_together_again(at: int) -> None:
    line = "kjump: not resumed: [12] is no reason\r\n"
    kernel = "[    5.386292] EXT4-fs (vda): mounted filesystem\r\n[   10.000001] second\r\n"
    assert without_kernel_lines(line[:at] + kernel + line[at:]) == line


def test_who_waits_for_a_machine_that_ended_hears_why() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        guest = GuestChannel(ours, lambda: "guest-reset")
        theirs.close()
        with pytest.raises(LostMachineError, match="event ready: the machine ended: guest-reset"):
            guest.event("ready", timeout=10)


def test_a_guest_that_says_what_cannot_be_understood_is_not_waited_for() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        guest = GuestChannel(ours, lambda: "guest-reset")
        theirs.sendall(b'{"event": "cut off by a power-o\n{"event": "ready"}\n{"id": 1, "status": "0"}\n')
        assert guest.event("ready", timeout=10).name == "ready"
        with pytest.raises(FormatError, match=r"waiting for reply 1: .*: status is"):
            guest.reply(1, timeout=10)


def log_and_disk(folder: Path) -> None:
    (folder / "first").mkdir(parents=True)
    (folder / "first/console.log").write_text("Kernel panic")
    (folder / "target.img").write_bytes(bytes(4096))


def kept(folder: Path) -> Path:
    """Return the only folder in `folder`; it must have the console log, and nothing else."""
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["console.log"]
    (found,) = folder.iterdir()
    assert (found / "first/console.log").read_text() == "Kernel panic"
    return found


@pytest.mark.parametrize("kind", [LabError, FormatError])
def test_the_console_logs_of_what_failed_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[KjumpError]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(kind, match=r"ended \(console logs: ") as error, LoggedFolder(None) as logs:
        log_and_disk(logs.folder)
        raise kind("the machine ended")
    assert str(kept(tmp_path)) in str(error.value)


def test_the_console_logs_stay_when_a_check_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with LoggedFolder(None) as logs:
        log_and_disk(logs.folder)
        logs.failed = True
    assert capsys.readouterr().err == f"console logs: {kept(tmp_path)}\n"


def test_nothing_stays_of_what_went_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with LoggedFolder(None) as logs:
        log_and_disk(logs.folder)
    assert not list(tmp_path.iterdir()) and capsys.readouterr().err == ""


def test_nothing_is_copied_where_all_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LabError, match=r"console logs: .*kept"), LoggedFolder(tmp_path / "kept"):
        raise LabError("the machine ended")
    with LoggedFolder(tmp_path / "kept") as logs:
        logs.failed = True
    assert capsys.readouterr().err == f"console logs: {tmp_path / 'kept'}\n"
