"""What is looked at before a jump, on made-up machines: files below a root folder, a simulated disk."""

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kjump.errors import HostError, TargetError
from kjump.hibernate import preflight, resume, rollback, suspend
from kjump.host import kernel_memory, procfs, root
from kjump.kexec.window import DEFAULT_SIZE
from kjump.target import disks
from kjump.target.disks import FdDisk

MIB = 1 << 20
FILES = {
    "proc/iomem": "00001000-0009fbff : System RAM\n00100000-3fffffff : System RAM\n  01000000-01ffffff : Kernel code\n",
    "proc/cpuinfo": "model name : made up\nflags : lm pdpe1gb la57\n\n",
    "proc/meminfo": "MemTotal: 4194304 kB\nMemFree: 3000000 kB\nMemAvailable: 3100000 kB\nSwapFree: 0 kB\n",
    "proc/kallsyms": "ffffffff81000000 D gdt_page\nffffffff82000000 D kexec_image\n",
    "proc/sys/kernel/kexec_load_disabled": "0\n",
    "proc/config.gz": "",
    "proc/self/mounts": "proc /proc proc rw 0 0\n/dev/vda1 / ext4 ro,relatime 0 0\n",
    "sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
}
OPTIONS = ("KEXEC", "KEXEC_JUMP", "HIBERNATION", "CRASH_DUMP", "PROC_VMCORE", "PROC_KCORE", "KALLSYMS_ALL", "DEVMEM")


class OneDisk:
    """The disks of a machine that has one, /dev/target; `size` is its size."""

    def __init__(self) -> None:
        self.size = 64 * MIB
        self.fd = os.memfd_create("disk")
        os.ftruncate(self.fd, 1 * MIB)

    def open(self, path: str, *, writable: bool) -> tuple[FdDisk, int]:
        if path != "/dev/target":
            raise TargetError(f"target {path} cannot be opened: No such file or directory")
        return FdDisk(os.dup(self.fd)), self.size

    def is_file(self, path: str) -> bool:
        return False

    def write_out(self) -> None:
        pass


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    config(tmp_path, *OPTIONS)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    kernel_memory.forget_symbols()
    with root.below(tmp_path), disks.used(OneDisk()):  # type: ignore[arg-type]
        yield tmp_path
    kernel_memory.forget_symbols()


def config(folder: Path, *options: str) -> None:
    text = "".join(f"CONFIG_{name}=y\n" for name in options) + "# CONFIG_OTHER is not set\nCONFIG_HZ=250\n"
    (folder / "proc/config.gz").write_bytes(gzip.compress(text.encode()))


def failed(**how: object) -> dict[str, str]:
    arguments = {"target": "/dev/target", "window_size": DEFAULT_SIZE} | how
    return {c.name: f"{c.detail}; {c.remedy}" for c in preflight.checks(**arguments) if not c.ok}  # type: ignore[arg-type]


def test_a_machine_that_lacks_nothing(machine: Path) -> None:
    found = preflight.checks(target="/dev/target", window_size=DEFAULT_SIZE)
    assert [c.name for c in found if not c.ok] == []
    details = {c.name: c.detail for c in found}
    assert details["paging"] == "5 levels, 1 GiB identity pages"
    assert details["window"].startswith("[0x2000000-0x9ffffff], 128 MiB, and low memory [0x1000-0x9efff]")
    assert details["target"] == "/dev/target, 64 MiB"
    assert details["kernel config"] == "all options are set"
    preflight.require(found)


@pytest.mark.parametrize(
    ("name", "text", "check", "words"),
    [
        (
            "sys/kernel/security/lockdown",
            "none [integrity] confidentiality\n",
            "lockdown",
            "integrity; switch lockdown",
        ),
        ("proc/sys/kernel/kexec_load_disabled", "1\n", "kexec_load", "disabled by sysctl; reboot"),
        ("proc/kallsyms", "ffffffff81000000 D gdt_page\n", "symbols", "does not show gdt_page and kexec_image"),
        ("proc/kallsyms", "0 D gdt_page\n0 D kexec_image\n", "symbols", "hides addresses"),
        ("proc/iomem", "00001000-0009fbff : System RAM\n", "window", "no room for a window of 128 MiB"),
        ("proc/iomem", "00100000-3fffffff : System RAM\n", "window", "less than 64 KiB of RAM lie below"),
        (
            "proc/iomem",
            "00000000-00000000 : System RAM\n00000000-00000000 : Kernel code\n",
            "memory of drivers, window",
            "shows no addresses",
        ),
    ],
)
def test_each_thing_that_is_wrong_is_named_with_what_to_do(
    machine: Path, name: str, text: str, check: str, words: str
) -> None:
    (machine / name).write_text(text)
    found = failed()
    assert [*found] == check.split(", ")
    assert all(words in said for said in found.values())
    with pytest.raises(HostError, match=check.split(", ")[0]):
        preflight.require(preflight.checks(target=None, window_size=DEFAULT_SIZE))


def test_options_that_a_kernel_lacks_are_listed_and_one_that_does_not_say_is_let_be(machine: Path) -> None:
    config(machine, *OPTIONS[2:])
    assert "missing CONFIG_KEXEC, CONFIG_KEXEC_JUMP" in failed()["kernel config"]
    (machine / "proc/config.gz").unlink()
    assert failed() == {}
    folder = machine / "boot"
    folder.mkdir()
    (folder / f"config-{procfs.release()}").write_text("CONFIG_KEXEC=y\n")
    assert "CONFIG_KEXEC_JUMP" in failed()["kernel config"]


def test_a_kernel_without_lockdown_and_one_without_kexec(machine: Path) -> None:
    (machine / "sys/kernel/security/lockdown").unlink()
    assert failed() == {}
    (machine / "proc/sys/kernel/kexec_load_disabled").unlink()
    assert "the kernel has no kexec" in failed()["kexec_load"]


def test_who_is_not_root_is_refused(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    unseen = dict.fromkeys(("symbols", "window", "target"), "not checked: only root can; run as root")
    assert failed() == {"privileges": "user 1000; run as root"} | unseen


def test_targets_that_are_missing_or_small(machine: Path) -> None:
    assert "cannot be opened" in failed(target="/dev/other")["target"]
    disks.current().size = 4 * MIB  # type: ignore[attr-defined]
    assert "has only 4194304 bytes" in failed()["target"]
    assert "target" not in failed(target=None)
    assert "window" not in {c.name for c in preflight.checks(target=None, window_size=None)}


def test_what_changes_unseen_is_of_no_matter_for_a_dump_and_a_look(machine: Path) -> None:
    (machine / "proc/self/mounts").write_text("tank /data zfs rw 0 0\n")
    assert "zfs on tank (mounted at /data): a change by another" in failed()["file systems"]
    assert failed(accept_unseen=("zfs",)) == failed(accept_unseen=None) == {}


def test_caches_are_dropped_when_memory_is_short(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pressed: list[int] = []
    monkeypatch.setattr(preflight, "_press", pressed.append)
    drop = machine / "proc/sys/vm/drop_caches"
    drop.parent.mkdir(parents=True)
    preflight.make_room(200 * MIB)
    assert (drop.read_text(), pressed) == ("3\n", [])
    meminfo = (machine / "proc/meminfo").read_text()
    (machine / "proc/meminfo").write_text(
        meminfo.replace("3100000", "100000").replace("SwapFree: 0", "SwapFree: 200000")
    )
    preflight.make_room(200 * MIB)
    assert pressed == [200 * MIB]
    preflight.make_room(400 * MIB)  # nor would swapping give that
    assert pressed == [200 * MIB]


def test_memory_is_pressed_by_a_process_of_its_own(machine: Path) -> None:
    (machine / "proc/self/oom_score_adj").write_text("0")
    preflight._press(1 * MIB)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


# --- before a resume, and a roll-back ------------------------------------------------------------------------------


def test_a_resume_is_refused_while_a_disk_is_mounted_for_writing(machine: Path) -> None:
    resume.refuse_if_mounted()
    (machine / "proc/self/mounts").write_text("/dev/vda1 / ext4 rw,relatime 0 0\n")
    with pytest.raises(HostError, match="/dev/vda1 is mounted at /: unmount it"):
        resume.refuse_if_mounted()


def test_everyone_but_init_and_this_process_is_stopped_and_goes_on(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {7: "0", 8: "0", 9: str(0x00200000), 1: "0", os.getpid(): "0"}
    states = {7: "S", 8: "T", 9: "I", 1: "S", os.getpid(): "R"}
    sent: list[tuple[int, int]] = []

    def write() -> None:
        for pid, state in states.items():
            (machine / f"proc/{pid}").mkdir(exist_ok=True)
            (machine / f"proc/{pid}/stat").write_text(f"{pid} (a b) c) {state} 1 1 1 0 -1 {flags[pid]} 0 0\n")

    def kill(pid: int, number: int) -> None:
        sent.append((pid, number))
        if pid == -1:
            states[7] = "T"
            write()

    write()
    monkeypatch.setattr(os, "kill", kill)
    with rollback.everyone_stopped():
        assert sent == [(-1, 19)]
        states[10] = flags[10] = "T"
        flags[10] = "0"
        write()
    assert sorted(sent[1:]) == [(7, 18), (9, 18), (10, 18)]
    assert rollback._status(4711) == ("X", 0)


def test_kernel_and_initramfs_are_looked_for_in_boot(machine: Path) -> None:
    with pytest.raises(HostError, match="name the second kernel with --kernel"):
        suspend.default_kernel()
    with pytest.raises(HostError, match="kjump initramfs build"):
        suspend.default_initrd()
    (machine / "boot").mkdir()
    for name in ("vmlinuz", "kjump-initramfs.img"):
        (machine / "boot" / name).touch()
    assert suspend.default_kernel() == machine / "boot/vmlinuz"
    assert suspend.default_initrd() == machine / "boot/kjump-initramfs.img"
    own = machine / f"boot/vmlinuz-{procfs.release()}"
    own.touch()
    assert suspend.default_kernel() == own
