"""What virtual machines leave behind: their console logs, and why they ended."""

import socket
import tempfile
from pathlib import Path

import pytest

from kjump.cli.demo import logged_folder
from kjump.errors import LabError
from kjump.lab.machine.qemu import Guest, LostMachineError, without_kernel_lines


@pytest.mark.parametrize("at", range(0, 30, 7))
def test_a_line_is_put_together_again(at: int) -> None:
    line = "kjump: not resumed: [12] is no reason\r\n"
    kernel = "[    5.386292] EXT4-fs (vda): mounted filesystem\r\n[   10.000001] second\r\n"
    assert without_kernel_lines(line[:at] + kernel + line[at:]) == line


def test_who_waits_for_a_machine_that_ended_hears_why() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        guest = Guest(ours, lambda: "guest-reset")
        theirs.close()
        with pytest.raises(LostMachineError, match="event ready: the machine ended: guest-reset"):
            guest.event("ready", timeout=10)


def test_the_console_logs_of_what_failed_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(LabError, match=r"ended \(console logs: ") as error, logged_folder(None) as folder:
        (folder / "first").mkdir()
        (folder / "first/console.log").write_text("Kernel panic")
        (folder / "target.img").write_bytes(bytes(4096))
        raise LabError("the machine ended")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["console.log"]
    (kept,) = tmp_path.iterdir()
    assert str(kept) in str(error.value)
    assert (kept / "first/console.log").read_text() == "Kernel panic"


def test_nothing_is_copied_where_all_is_kept(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"console logs: .*kept"), logged_folder(tmp_path / "kept"):
        raise LabError("the machine ended")
