"""What PID 1 is made of: its status channel, console, faults on request, and the work of changing roots."""

import errno
import json
import os
import pty
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kjump.errors import HostError, ImageError
from kjump.host import root
from kjump.init import system
from kjump.init.console import Console, ProgressBar
from kjump.init.jobs import faults
from kjump.init.jobs.faults import Fault
from kjump.init.status import Status, find_port
from kjump.init.watchdog import Guard
from kjump.target import disks


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Path]:
    with root.below(tmp_path):
        yield tmp_path


# --- the status channel ------------------------------------------------------------------------------------------


def port(machine: Path, label: str) -> Path:
    folder = machine / "sys/class/virtio-ports/vport0p1"
    folder.mkdir(parents=True)
    (folder / "name").write_text(label + "\n")
    (machine / "dev").mkdir()
    (machine / "dev/vport0p1").touch()
    return machine / "dev/vport0p1"


def test_events_are_lines_of_json_on_the_port_that_is_named(machine: Path) -> None:
    file = port(machine, "kjump")
    assert find_port("other") is None
    status = Status.open("kjump")
    status.send("saved", bytes=7)
    status.send("going-back")
    status.close()
    status.send("nobody hears that")
    status.close()
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"event": "saved", "bytes": 7},
        {"event": "going-back"},
    ]


def test_without_a_port_nothing_is_sent(machine: Path) -> None:
    Status.open(None).send("unheard")
    Status.open("absent", timeout=0.03).send("unheard")
    port(machine, "kjump").unlink()
    Status.open("kjump", timeout=0.03).send("unheard")


def test_a_port_that_nobody_reads_any_more_is_let_be() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    status = Status(writer)
    status.send("first")
    os.close(writer)
    status.send("second")


# --- the console -------------------------------------------------------------------------------------------------


@pytest.fixture
def keyboard() -> Iterator[int]:
    """A terminal on file descriptor 0; yields its other end."""
    before = os.dup(0)
    there, here = pty.openpty()
    os.dup2(here, 0)
    yield there
    os.dup2(before, 0)
    for fd in (before, there, here):
        os.close(fd)


@pytest.mark.parametrize(("key", "goes_on"), [(b"", True), (b"x", True), (b"\x1b", False), (b"q", False)])
def test_a_key_cancels_and_the_keyboard_is_given_back(
    keyboard: int, capsys: pytest.CaptureFixture[str], key: bytes, goes_on: bool
) -> None:
    before = termios.tcgetattr(0)
    bar = ProgressBar("saving", cancellable=True)
    assert not termios.tcgetattr(0)[3] & (termios.ICANON | termios.ECHO)
    os.write(keyboard, key)
    assert bar(3 << 20, 4 << 20, 1 << 20) is goes_on
    bar.close()
    assert termios.tcgetattr(0) == before
    out = capsys.readouterr().out
    assert "saving [######################        ]  75% 3 of 4 MiB" in out and "Esc cancels" in out
    assert out.endswith("\n")


def test_without_a_terminal_nothing_can_be_cancelled(capsys: pytest.CaptureFixture[str]) -> None:
    before, null = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    try:
        bar = ProgressBar("restoring", cancellable=True)
        assert bar(0, 0, 0)
        bar.close()
        Console().line("a line")
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(null)
    out = capsys.readouterr().out
    assert "100% 0 of 0 MiB" in out and "Esc" not in out and out.endswith("a line\n")


# --- faults ------------------------------------------------------------------------------------------------------


def test_a_fault_happens_once_when_its_share_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[int] = []
    monkeypatch.setitem(faults._KINDS, "spin", happened.append)
    fault = Fault("spin:3@0.5")
    for share in (0.0, 0.49, 0.5, 0.9):
        fault.due(share)
    assert happened == [3]
    Fault("").due(1.0)
    with pytest.raises(RuntimeError, match="asked for"):
        Fault("exception").due(0.0)


def test_faults_are_the_real_thing(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: seen.append(cpus))
    monkeypatch.setattr(faults, "mount", lambda *words: seen.append(words))
    monkeypatch.setattr(faults.time, "sleep", seen.append)
    for name in ("proc/sysrq-trigger", "sys/kernel/debug/provoke-crash/DIRECT"):
        (machine / name).parent.mkdir(parents=True)
        (machine / name).touch()
    Fault("panic:1").due(0)
    assert (machine / "proc/sysrq-trigger").read_text() == "c"
    Fault("spin:2").due(0)
    assert (machine / "sys/kernel/debug/provoke-crash/DIRECT").read_text() == "HARDLOCKUP"
    Fault("hang").due(0)
    assert seen == [{1}, ("debugfs", "/sys/kernel/debug", "debugfs"), {2}, 1 << 20]


def test_a_watchdog_is_fed_from_every_cpu_and_stopped_by_its_letter(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = Guard()
    assert not guard.start_watchdog(30)
    (machine / "dev").mkdir()
    (machine / "dev/watchdog").touch()
    asked: list[bytes] = []
    monkeypatch.setattr("kjump.init.watchdog.fcntl.ioctl", lambda fd, request, value: asked.append(value))
    assert guard.start_watchdog(40)
    guard.stop_watchdog()
    guard.stop_watchdog()
    assert asked == [(40).to_bytes(4, "little")]
    assert (machine / "dev/watchdog").read_bytes().endswith(b"V")


# --- mounts and roots --------------------------------------------------------------------------------------------


class Libc:
    """The C library, as far as mount(2) goes."""

    def __init__(self) -> None:
        self.mounts: list[tuple[object, ...]] = []
        self.result = 0

    def mount(self, *words: object) -> int:
        self.mounts.append(tuple(getattr(word, "value", word) for word in words))
        return self.result


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Libc:
    fake = Libc()
    monkeypatch.setattr(system, "libc", lambda: fake)
    return fake


def test_a_refused_mount_names_the_place(libc: Libc, monkeypatch: pytest.MonkeyPatch) -> None:
    system.mount("/dev/vda", "/newroot", "ext4", 1, "data=ordered")
    assert libc.mounts == [(b"/dev/vda", b"/newroot", b"ext4", 1, b"data=ordered")]
    libc.result = -1
    monkeypatch.setattr(system.ctypes, "get_errno", lambda: errno.ENODEV)
    with pytest.raises(OSError, match="No such device: '/newroot'"):
        system.mount("/dev/vda", "/newroot", None)


def test_the_kernels_file_systems_are_mounted_where_they_are_missing(
    libc: Libc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "makedirs", lambda *_, **__: None)
    monkeypatch.setattr(os.path, "ismount", lambda where: where == "/sys")
    system.mount_proc()
    system.mount_sys_and_dev()
    assert [words[1] for words in libc.mounts] == [b"/proc", b"/dev"]


def test_the_root_is_changed_and_the_initramfs_given_back(
    libc: Libc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, ...]] = []
    new = tmp_path / "new"
    (new / "sbin").mkdir(parents=True)
    with pytest.raises(HostError, match="the root file system has no /sbin/init"):
        system.switch_root(str(new), "/sbin/init")
    (new / "sbin/init").symlink_to("/lib/systemd/systemd")  # to be followed only when the root has been changed
    for name in ("chdir", "chroot"):
        monkeypatch.setattr(os, name, lambda path, name=name: steps.append((name, path)))
    monkeypatch.setattr(os, "execv", lambda path, words: steps.append(("execv", path, *words)))
    monkeypatch.setattr(system, "_remove_tree", lambda path, device: steps.append(("remove", path)))
    libc.mounts.clear()
    system.switch_root(str(new), "/sbin/init")
    assert [words[:2] for words in libc.mounts] == [
        *((where, os.fsencode(new) + where) for where in (b"/proc", b"/sys", b"/dev")),
        (b".", b"/"),
    ]
    assert [step[0] for step in steps] == ["chdir", "remove", "chroot", "chdir", "execv"]
    assert steps[-1] == ("execv", "/sbin/init", "/sbin/init")


def test_all_of_a_tree_is_removed_but_for_other_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").touch()
    (tmp_path / "link").symlink_to("/nowhere")
    (tmp_path / "other").mkdir()
    device, lstat = os.lstat(tmp_path).st_dev, os.lstat

    def elsewhere(path: str) -> os.stat_result:
        found = list(lstat(path))
        found[2] = device + (str(path).endswith("other"))
        return os.stat_result(found)

    monkeypatch.setattr(os, "lstat", elsewhere)
    system._remove_tree(str(tmp_path), device)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_options_and_places_of_superblocks(machine: Path) -> None:
    (machine / "proc").mkdir()
    (machine / "proc/cmdline").write_text('root=/dev/vda kjump.resume_offset=34816 "a b=c d"\n')
    (machine / "proc/uptime").write_text("12.34 20.00\n")
    options = system.kernel_options()
    assert options["a b"] == "c d"
    assert system.superblock_offset(options) == 34816 * 4096
    assert system.superblock_offset({}) == 0
    with pytest.raises(ImageError, match=r"kjump\.resume_offset=x is not a number of blocks"):
        system.superblock_offset({"kjump.resume_offset": "x"})
    assert system.uptime() == 12.34


@pytest.mark.parametrize(("there", "wanted"), [(lambda n: n > 2, True), (lambda n: False, False)])
def test_a_device_may_be_a_while_in_coming(
    monkeypatch: pytest.MonkeyPatch, there: Callable[[int], bool], wanted: bool
) -> None:
    looks: list[str] = []

    def is_there(path: str) -> bool:
        looks.append(path)
        return there(len(looks))

    monkeypatch.setattr(disks.current(), "is_there", is_there, raising=False)
    assert system.wait_for_device("/dev/vda", 0.1 if wanted else 0.03) == ("/dev/vda" if wanted else None)
    assert len(looks) > 1


# --- this machine's own disks --------------------------------------------------------------------------------------


def test_what_is_no_block_device_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    here = disks.HostDisks()
    assert here.is_file(str(file)) and not here.is_there(str(file)) and not here.is_there("/dev/none")
    with pytest.raises(disks.TargetError, match="cannot be opened: No such file"):
        here.open(str(tmp_path / "none"), writable=False)
    with pytest.raises(disks.TargetError, match=r"is not a block device|Invalid argument"):
        here.open(str(file), writable=False)
    assert all(name.startswith("/dev/") for name in here.names())
