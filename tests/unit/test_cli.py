"""The command line: what its help says, and what it refuses before it does anything."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

import kjump.__main__
import kjump.cli
from kjump.cli import examples, progress
from kjump.cli.options import LEVEL, PLAIN_LEVEL
from kjump.formats.cpio import regular, write

TREE = dict(examples.walk(kjump.cli.kjump))
VERBS = sorted(name for name, command in TREE.items() if not isinstance(command, click.Group))
GROUPS = sorted(name for name, command in TREE.items() if isinstance(command, click.Group))


def run(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run the command; return its exit status, output and errors."""
    with pytest.raises(SystemExit) as end:
        kjump.cli.main(list(words))
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not root."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """A function that parses a command line, does nothing, and returns the names of the verbs that were reached."""
    reached: list[str] = []

    def note(command: click.Command, context: click.Context) -> None:
        reached.append(str(command.name))

    def path_as_it_is(self: click.Path, value: object, *_: object) -> object:
        return self.coerce_path_result(value)  # type: ignore[arg-type]

    monkeypatch.setattr(click.Path, "convert", path_as_it_is)
    monkeypatch.setattr(click.Command, "invoke", note)

    def parse(line: str) -> list[str]:
        reached.clear()
        words = shlex.split(line)
        assert words[0] == "kjump"
        kjump.cli.kjump.main(words[1:], prog_name="kjump", standalone_mode=False)
        return list(reached)

    return parse


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example_that_parses(verb: str, parsed: Callable[[str], list[str]]) -> None:
    assert examples.EXAMPLES.get(verb), f"cli/examples.py has no example of `kjump {verb}`"
    for line in examples.EXAMPLES[verb]:
        name = str(TREE[verb].name)
        assert parsed(line)[-1] == name, line


def test_no_example_is_of_a_verb_that_is_not_there() -> None:
    assert set(examples.EXAMPLES) == set(VERBS)


@pytest.mark.parametrize("name", [n for n in TREE if n])
def test_the_help_ends_with_the_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(*name.split(), "--help", capsys=capsys)
    assert (status, err) == (0, "")
    shown = out.partition("Examples:\n")[2].split("\n")
    assert [line.strip() for line in shown if line.strip()] == list(examples.examples_of(name))


@pytest.mark.parametrize("name", GROUPS)
def test_no_summary_is_cut_off(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(*name.split(), "--help", capsys=capsys)
    lines = out.partition("Examples:")[0].splitlines()
    assert not [line for line in lines if line.endswith("...") and not line.startswith("Usage:")]


def test_every_verb_is_listed_under_one_heading(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run("--help", capsys=capsys)
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ") and line[2:3].isalpha()]
    assert sorted(listed[listed.index("doctor") :]) == sorted({v.split()[0] for v in VERBS})


@pytest.mark.parametrize("options", [["--help"], ["--no-such-option"], ["--to", "/dev/nowhere"], []])
def test_a_hibernation_that_is_not_called_for_starts_nothing(options: list[str], tmp_path: Path) -> None:
    """No file of a kernel on standby is looked for, and no thread begins to unpack it."""
    script = (
        "import sys, threading, pathlib\n"
        "import kjump.peers\n"
        f"kjump.peers.FOLDER = pathlib.Path({str(tmp_path)!r})\n"
        "import kjump.peers.prefetch as prefetch\n"
        "prefetch.unpack_ahead = lambda *_: print('unpacking')\n"
        "if hasattr(prefetch, 'begun'): prefetch.begun = prefetch.unpack_ahead\n"
        f"sys.argv = ['kjump', 'hibernate', *{options!r}]\n"
        "from kjump.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "unpacking" not in done.stdout
    assert "Traceback" not in done.stderr


def test_the_command_leaves_the_standard_library_as_it_is() -> None:
    script = (
        "import sys, dataclasses\n"
        "sys.argv = ['kjump', '--version']\n"
        "import os; os._exit = sys.exit\n"
        "from kjump.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "import gc, dataclasses, inspect\n"
        "print('exec' in vars(dataclasses), dataclasses.inspect is inspect, gc.get_threshold()[0] < 50_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False True True"


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hibernate", "--to", "/dev/nowhere"], "target /dev/nowhere cannot be opened: No such file"),
        (["hibernate", "--to", "/dev/null"], "target /dev/null is not a block device"),
        (["hibernate", "--to", "/tmp"], "target /tmp is a folder"),
        (["hibernate", "--to", "/etc/passwd", "--kernel", "/etc/passwd"], "/etc/passwd cannot be the kernel"),
        (["hibernate", "--to", "/etc/passwd", "--initrd", "/etc/passwd"], "/etc/passwd cannot be an initramfs"),
        (["snapshot", "--to", "/dev/nowhere"], "target /dev/nowhere cannot be opened"),
        (["snapshot", "--to", "/tmp", "--hook", "/etc/passwd"], "--hook needs a device"),
        (["resume", "--from", "/dev/nowhere"], "target /dev/nowhere cannot be opened"),
        (["resume", "--from", "/etc/passwd", "--offset", "3"], "/etc/passwd is a file"),
        (["rollback", "--from", "/dev/nowhere"], "target /dev/nowhere cannot be opened"),
        (["rollback", "--from", "/etc/passwd", "--offset", "3"], "/etc/passwd is a file"),
        (["doctor", "--to", "/dev/nowhere"], "target /dev/nowhere cannot be opened"),
        (["peer", "dmup"], "`kjump peer` knows info, dump, drgn, not 'dmup'"),
        (["boot-peer", "/etc/passwd"], "/etc/passwd cannot be the kernel"),
        (["boot-peer", "--initrd", "/etc/passwd"], "/etc/passwd cannot be an initramfs"),
        (["switch", "old", "--send", "/nowhere"], "/nowhere: No such file"),
        (["standby", "--kernel", "/etc/passwd"], "/etc/passwd cannot be the kernel"),
        (["load", "/etc/passwd"], "/etc/passwd cannot be the kernel"),
        (["load", "/etc/passwd", "--on-crash"], "/etc/passwd cannot be the kernel"),
        (["initramfs", "build", "--kernel", "/etc/passwd"], "/etc/passwd cannot be the kernel"),
        (["target", "show", "/dev/nowhere"], "target /dev/nowhere cannot be opened"),
    ],
)
def test_what_is_named_is_looked_at_before_privileges(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(*words, capsys=capsys)
    assert status in (1, 2)
    assert said in err and "root" not in err and out == ""


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize(
    "words",
    [
        ["hibernate", "--to", "/etc/passwd"],
        ["snapshot", "--to", "/tmp"],
        ["resume", "--from", "/etc/passwd"],
        ["rollback", "--from", "/etc/passwd"],
        ["peer", "info"],
        ["switch", "old"],
        ["restart", "old"],
        ["drop"],
        ["standby", "--off"],
        ["exec"],
        ["unload"],
        ["inspect", "--plan"],
        ["bios", "e820"],
        ["target", "create", "/tmp/image", "1G"],
    ],
)
def test_then_privileges_are_asked_for(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kjump.kexec.syscalls.is_loaded", lambda **_: True)
    monkeypatch.setattr("kjump.init.peer_link.is_resident", lambda: False)
    status, out, err = run(*words, capsys=capsys)
    assert (status, out) == (1, "")
    assert err == "kjump: only root can do this: run it as root\n"


@pytest.mark.usefixtures("user")
def test_to_a_user_doctor_says_what_only_root_can_check(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run("doctor", "--to", "/etc/passwd", "--json", capsys=capsys)
    checks = {c["name"]: c for c in json.loads(out)["checks"]}
    assert status == 1
    for name in ("symbols", "window", "target"):
        assert checks[name]["detail"] == "not checked: only root can"
        assert checks[name]["remedy"] == "run as root"


@pytest.mark.usefixtures("user")
def test_a_user_may_ask_for_the_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of the peers is there, and root's."""
    monkeypatch.setattr("kjump.peers.FOLDER", tmp_path)
    monkeypatch.setattr("kjump.kexec.syscalls.is_loaded", lambda **_: False)
    monkeypatch.setattr("kjump.peers.lifecycle.Peers", lambda *_: pytest.fail("the peers' files are root's"))
    status, out, err = run("status", capsys=capsys)
    assert (status, err) == (1, "")
    assert "resident peers: only root can see them" in out
    assert json.loads(run("status", "--json", capsys=capsys)[1])["peers"] is None


def test_what_is_remembered_of_peers_is_for_root_only(tmp_path: Path) -> None:
    """Cookies and addresses of the kernel are in it."""
    from kjump.peers.registry import Ledger

    with Ledger(tmp_path / "kjump"):
        assert (tmp_path / "kjump").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("force", [False, True])
def test_a_file_that_is_no_target_is_never_overwritten(
    force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--overwrite is about what a device carries."""
    from kjump.errors import TargetError
    from kjump.hibernate import suspend
    from kjump.target.disks import FdDisk
    from kjump.target.file import FileTarget

    class OnSomeDisk(FileTarget):
        """A file target without looking where it lies."""

        def __init__(self, path: str) -> None:
            self.path, self.extents = path, ()
            self.disk = FdDisk(os.open(path, os.O_RDWR))
            self.capacity = Path(path).stat().st_size

        def hold(self) -> None:
            """Nobody else has it."""

    file = tmp_path / "letter"
    file.write_bytes(b"Dear reader" * 4096)
    monkeypatch.setattr(suspend, "open_for_image", OnSomeDisk)
    with pytest.raises(TargetError, match="holds something else, not a target"):
        suspend.claim(suspend.TripRequest(str(file), kernel=file, initrd=file, force=force))


@pytest.mark.parametrize("words", [["hibernate", "--to", "/etc/passwd"], ["snapshot", "--to", "/etc/passwd"]])
@pytest.mark.parametrize("level", ["31", "-51", "fast"])
def test_a_level_is_one_of_zstd(words: list[str], level: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(*words, "--level", level, capsys=capsys)
    assert status == 2 and "zstd level" in err


def test_a_level_may_be_measured_only_where_that_is_done() -> None:
    assert LEVEL.convert("auto", None, None) == 0
    with pytest.raises(click.BadParameter):
        PLAIN_LEVEL.convert("auto", None, None)


def test_level_is_zstd_s_in_all_verbs() -> None:
    """And what a dump leaves out is --dump-level, wherever it is."""
    shown = {name: out for name in VERBS if (out := TREE[name].get_help(click.Context(TREE[name])))}
    levels = {name: line for name, out in shown.items() for line in out.splitlines() if line.startswith("  --level ")}
    assert set(levels) == {"hibernate", "snapshot", "initramfs build"}
    assert all("zstd level" in " ".join(shown[name].split()) for name in levels)
    assert {name for name, out in shown.items() if "--dump-level " in out} >= {"snapshot", "dump write", "dump convert"}


def test_former_names_of_options_still_work(parsed: Callable[[str], list[str]]) -> None:
    for line in (
        "kjump resume --from /dev/sdb2 --force",
        "kjump hibernate --to /dev/sdb2 --force",
        "kjump snapshot --to /dev/sdb2 --compression 3 --force",
        "kjump dump write a b --level 17",
    ):
        assert parsed(line)


def test_steps_are_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress("dumping vmcore") as report:
        for share in range(101):
            report(share / 100, f"{share} MiB written")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[0].startswith("dumping vmcore:   0% after 0 s, 0 MiB written")
    assert "100% after" in lines[-1] and lines[-1].endswith("100 MiB written")


def test_an_initramfs_needs_a_kernel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole one: a file that only begins as one is refused as well, and leaves no initramfs behind."""
    monkeypatch.setattr("kjump.host.procfs.release", lambda: "0.0-nowhere")
    monkeypatch.setattr("kjump.hibernate.suspend.Path", lambda *_: tmp_path / "nothing")
    out = tmp_path / "out.img"
    status, _, err = run("initramfs", "build", str(out), capsys=capsys)
    assert status == 1 and "name the second kernel with --kernel" in err
    kernel = tmp_path / "vmlinuz"
    head = bytearray(4096)
    head[0x1FE:0x200], head[0x202:0x206] = b"\x55\xaa", b"HdrS"
    kernel.write_bytes(head)
    status, _, err = run("initramfs", "build", str(out), "--kernel", str(kernel), capsys=capsys)
    assert status == 1 and f"{kernel}: the kernel is too old" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["vmlinuz"]


@pytest.mark.parametrize(
    "head", [write([regular("init", b"")])[:512], b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"\x02!L\x18"]
)
def test_an_initramfs_may_be_compressed(head: bytes, tmp_path: Path) -> None:
    from kjump.cli.arguments import check_second_kernel

    initrd = tmp_path / "initrd"
    initrd.write_bytes(head)
    check_second_kernel(None, initrd)
