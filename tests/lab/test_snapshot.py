"""Snapshots and roll-backs on real kernels: the demonstrations, and what they do not show."""

import json
from pathlib import Path

import pytest

from kjump.dump import bitmaps
from kjump.dump.opening import open_source
from kjump.dump.selection import select_level
from kjump.dump.source import Source
from kjump.errors import LabError
from kjump.formats.superblock import SUPERBLOCK_SIZE, State, Superblock
from kjump.initramfs.build import build
from kjump.lab import rollback, snapshot
from kjump.lab.machine import kernel_source as kernels
from kjump.lab.machine.disks import make_disk
from kjump.lab.machine.installation import TARGET_DEVICE, Hardware, Installation
from kjump.lab.machine.qemu import VirtualMachine

MIB = 1 << 20
QUIET = "mkdir -p /mnt/ram && mount -o remount,ro / && echo alive > /run/marker"
SECOND_TARGET, INITRD = "/dev/vdc", "/dev/vdd"


def state(disk: Path) -> State:
    with disk.open("rb") as file:
        return Superblock.unpack(file.read(SUPERBLOCK_SIZE)).state


def test_each_snapshot_shows_its_moment(folder: Path) -> None:
    if kernels.cached("6.1", debug_info=True) is None:
        pytest.skip("no debugging information: run `kjump lab kernel build --version 6.1 --debug-info` to force this")
    demo = snapshot.run(folder, version="6.1", hardware=Hardware(memory=640 * MIB), count=2)
    assert demo.ok, (demo.failed, demo.to_json())
    assert len(demo.snapshots) == 2 and all(s.pause > 0 for s in demo.snapshots)
    assert demo.snapshots[0].values[0] < demo.snapshots[1].values[0]


def test_everything_destroyed_is_there_again_and_changed_disks_are_refused(folder: Path) -> None:
    demo = rollback.run(folder, version="6.12", hardware=Hardware(memory=640 * MIB))
    assert demo.ok, (demo.failed, demo.to_json())


def marker(machine: VirtualMachine) -> str:
    return machine.guest.run("cat", "/run/marker", check=False).stdout.strip()


def test_a_snapshot_without_a_hook_while_nobody_writes(installation: Installation) -> None:
    with installation.machine() as machine:
        guest = machine.guest
        guest.event("ready")
        guest.run("sh", "-ec", QUIET)
        command = guest.start("kjump", "snapshot", "--to", TARGET_DEVICE, "--json")
        assert json.loads(guest.reply(command).stdout)["taken"]
        for count in (1, 2):
            guest.run("rm", "/run/marker")
            report = json.loads(rollback.roll_back(guest, command, TARGET_DEVICE).stdout)
            assert (report["rolled_back"], report["count"]) == (True, count)
            assert marker(machine) == "alive"
        refused = guest.run("kjump", "resume", "--from", TARGET_DEVICE, check=False)
        assert refused.status == 1 and "holds a snapshot" in refused.stderr
        # It must be the mounted file system, and nothing else, that a roll-back shies away from.
        guest.run("sh", "-ec", "mount -o remount,rw /; rm -f /root/x; mount -o remount,ro /")
        with pytest.raises(LabError, match=r"ext4 file system on /dev/vda \(mounted at /\) has changed"):
            rollback.roll_back(guest, command, TARGET_DEVICE)
        assert marker(machine) == "alive"


HOOK = "#!/usr/bin/python3 -IS\nimport sys\nprint('I cannot', sys.argv[1])\nsys.exit(sys.argv[1] == 'restore')\n"


def test_a_hook_that_fails_on_the_way_back_ends_in_an_ordinary_boot(installation: Installation) -> None:
    with installation.machine() as machine:
        guest = machine.guest
        guest.event("ready")
        guest.run("python3", "-c", f"open('/run/hook', 'w').write({HOOK!r})")
        snapshot.take(guest, TARGET_DEVICE, "--hook", "/run/hook")
        guest.start("kjump", "rollback", "--from", TARGET_DEVICE)
        assert machine.wait_off(120) == "guest-reset"
    with installation.machine() as machine:
        reason = machine.guest.event("not-resumed", "resuming").details.text("reason")
        assert "failed: the hook ended with exit status 1; its last words: I cannot restore" in reason
        machine.guest.event("ready")
    assert state(installation.target_disk) is State.SNAPSHOT


STOP_EVERYONE = """
import os, time
from kjump.hibernate.rollback import everyone_stopped

def size():
    return os.stat("/run/ticks").st_size

with everyone_stopped():
    before = size()
    time.sleep(1)
    assert size() == before, "somebody went on"
deadline = time.monotonic() + 60
while size() == before and time.monotonic() < deadline:
    time.sleep(0.1)
assert size() > before, "nobody goes on"
"""


def test_everyone_is_stopped_and_those_go_on_that_went_before(installation: Installation) -> None:
    with installation.machine() as machine:
        guest = machine.guest
        guest.event("ready")
        guest.run("sh", "-c", "while :; do echo tick >> /run/ticks; sleep 0.05; done >/dev/null 2>&1 &")
        # Redirected before the fork: a child stopped too soon would keep our end of the pipe open.
        guest.run("sh", "-c", "exec >/dev/null 2>&1; sleep 1000 & echo $! > /run/pid; kill -STOP $!")
        guest.run("python3", "-c", STOP_EVERYONE)
        assert guest.run("sh", "-c", "cut -d' ' -f3 /proc/$(cat /run/pid)/stat").stdout == "T\n"


def test_a_cold_roll_back_and_boots_that_leave_a_snapshot_alone(installation: Installation) -> None:
    with installation.machine() as machine:
        machine.guest.event("ready")
        machine.guest.run("sh", "-ec", QUIET)
        command = machine.guest.start("kjump", "snapshot", "--to", TARGET_DEVICE, "--json")
        machine.guest.reply(command)
        machine.kill()
    with installation.machine(f"kjump.rollback={TARGET_DEVICE}") as machine:
        machine.guest.event("resuming", "not-rolled-back")
        report = json.loads(machine.guest.reply(command).stdout)
        assert (report["rolled_back"], report["count"]) == (True, 1)
        assert marker(machine) == "alive"
    with installation.machine() as machine:
        refusal = machine.guest.event("not-resumed", "resuming")
        assert refusal.name == "not-resumed" and "holds a snapshot" in refusal.details.text("reason")
        machine.guest.event("ready")  # it has mounted its root file system, so the snapshot's is gone
    assert state(installation.target_disk) is State.SNAPSHOT
    with installation.machine(f"kjump.rollback={TARGET_DEVICE}") as machine:
        refusal = machine.guest.event("not-rolled-back", "resuming")
        assert refusal.name == "not-rolled-back" and "ext4 file system on /dev/vda" in refusal.details.text("reason")
        machine.guest.event("ready")
    assert state(installation.target_disk) is State.SNAPSHOT


def test_dumps_hooks_that_fail_and_looks_from_the_second_kernel(installation: Installation) -> None:
    target, initrd = installation.folder / "second.img", installation.folder / "with-dump.img"
    make_disk(target, 512 * MIB)
    data = build(installation.kernel.image, level=3, with_dump=True)
    initrd.write_bytes(data + bytes(-len(data) % 4096))
    with installation.machine(more_disks=(target, initrd)) as machine:
        guest = machine.guest
        guest.event("ready")
        guest.run("mkdir", "/snaps")
        for number in (1, 2):
            assert snapshot.take(guest, "/snaps", "--dump-level", "31").target == f"/snaps/snapshot-{number}.img"
        refused = guest.run("kjump", "rollback", "--from", "/snaps/snapshot-1.img", check=False)
        assert refused.status == 1 and "debugging dump" in refused.stderr
        guest.run("sh", "-ec", QUIET)
        guest.run("sh", "-c", "printf '#!/bin/sh\\necho no disk; exit 3\\n' > /run/hook")
        failed = guest.run(
            *("kjump", "snapshot", "--to", TARGET_DEVICE, "--hook", "/run/hook"),
            *("--hook-tool", "/usr/bin/busybox"),
            check=False,
        )
        assert failed.status == 1 and "the hook ended with exit status 3; its last words: no disk" in failed.stderr
        assert state(installation.target_disk) is not State.SNAPSHOT

        taken = snapshot.take(guest, TARGET_DEVICE, "--dump-level", "31")
        assert taken.kind == "dump" and taken.saved is not None
        refused = guest.run("kjump", "rollback", "--from", TARGET_DEVICE, check=False)
        assert refused.status == 1 and "debugging dump" in refused.stderr and "Traceback" not in refused.stderr

        found = json.loads(guest.run("kjump", "peer", "info", "--json").stdout)
        assert found["kind"] == "parked system" and found["release"] == installation.kernel.release
        assert found["trouble"] is None and sum(found["classes"].values()) == found["pages"]
        no_drgn = guest.run("kjump", "peer", "drgn", check=False)
        assert no_drgn.status == 1 and "drgn is not in this initramfs" in no_drgn.stderr
        written = guest.run("kjump", "peer", "--initrd", INITRD, "dump", "--format", "kdump", "--force", SECOND_TARGET)
        assert f"bytes in {SECOND_TARGET}" in written.stdout
        assert marker(machine) == "alive"
    assert state(installation.target_disk) is State.DUMP
    with open_source(installation.target_disk) as dump, open_source(target) as looked:
        assert dump.info.text == looked.info.text
        assert nothing_but_the_kernels(dump) and nothing_but_the_kernels(looked)
        assert taken.saved.kept <= bitmaps.count(dump.present) * 4096


def nothing_but_the_kernels(source: Source) -> bool:
    """Tell whether pages that level 31 leaves out are not in the dump, or, in small gaps, zeros."""
    keep = select_level(source.layout, source.present, 31).keep
    assert bitmaps.count(keep) * 4096 > 10 * MIB
    others = bitmaps.runs(source.present, len(source.present) * 8) - bitmaps.runs(keep, len(keep) * 8)
    return not any(any(source.read(r.start * 4096, r.size * 4096)) for r in others)
