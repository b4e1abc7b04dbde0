"""The two-step loader and the commands around it, in a guest."""

import json
import os
import signal
import subprocess
import sys
import time

from kjump.initramfs.build import build
from kjump.lab import hibernation
from kjump.lab.machine.installation import TARGET_DEVICE, Installation


def test_the_initramfs_is_small(installation: Installation) -> None:
    assert len(build(installation.kernel.image, level=19)) <= 12_000_000


def test_load_status_unload_and_what_is_refused(installation: Installation) -> None:
    kernel = f"/boot/vmlinuz-{installation.kernel.release}"
    with installation.machine() as machine:
        guest = machine.guest
        guest.event("ready")

        table = guest.run("kjump", "load", "--preserve-context", "--dry-run", kernel).stdout
        assert all(name in table for name in ("kernel", "gate", "low memory"))
        assert guest.run("kjump", "status", check=False).status == 1

        plan = json.loads(guest.run("kjump", "load", "--preserve-context", "--dry-run", "--json", kernel).stdout)
        gate = next(s for s in plan["segments"] if s["name"] == "gate")
        assert plan["entry"] == gate["address"]
        assert plan["flags"] == 2 | 62 << 16

        guest.run("kjump", "load", "--preserve-context", kernel)
        assert json.loads(guest.run("kjump", "status", "--json").stdout)["loaded"] is True
        guest.run("kjump", "unload")
        assert guest.run("kjump", "status", check=False).status == 1

        for arguments, status, words in (
            (["load", "/bin/busybox"], 1, "bzImage"),
            (["load", kernel, "--window", "0x200000,128M"], 1, "must not begin below"),
            (["load", kernel, "--window", "0x1000000,2M"], 1, "too small"),
            (["load", kernel, "--window", "nonsense"], 2, "START,SIZE"),
            (["load", kernel, "--window-size", "100G"], 1, "no room for a window"),
            (["load", kernel, "--append", "x" * 4096], 1, "command line"),
            (["load", kernel, "--on-crash"], 1, "crashkernel="),
            (["load", kernel, "--on-crash", "--dry-run"], 2, "without a window"),
            (["load", "/nowhere"], 2, "does not exist"),
            (["exec"], 2, "nothing is loaded"),
        ):
            reply = guest.run("kjump", *arguments, check=False)
            assert reply.status == status, (arguments, reply)
            assert words in reply.stderr, (arguments, reply)
            assert "Traceback" not in reply.stderr


def test_a_resume_by_hand_from_another_system(installation: Installation) -> None:
    """A rescue system finds the image, says whether it can be resumed, and does it."""
    rescue = installation.folder / "rescue.img"
    subprocess.run(["cp", "--sparse=always", str(installation.root_disk), str(rescue)], check=True)
    extra = (
        *("-drive", f"file={rescue},format=raw,if=none,id=rescue,cache=none"),
        *("-device", "virtio-blk-pci,drive=rescue,addr=0x10"),
    )
    # The disk is there from the beginning: one device more and QEMU's firmware makes another memory map.
    with installation.machine(extra=extra) as machine:
        machine.guest.event("ready")
        machine.guest.run("sh", "-c", "echo alive > /run/marker")
        suspended = hibernation.suspend(machine)
    with installation.machine("root=/dev/vdc kjump.resume=", extra=extra) as machine:
        guest = machine.guest
        guest.event("ready")
        assert guest.run("cat", "/run/marker", check=False).status
        dry = guest.run("kjump", "resume", "--from", TARGET_DEVICE, "--dry-run", "--force")
        assert "can be resumed" in dry.stdout
        refused = guest.run("kjump", "resume", "--from", TARGET_DEVICE, check=False)
        assert refused.status == 1 and "/dev/vdc is mounted" in refused.stderr
        guest.start("kjump", "resume", "--from", TARGET_DEVICE, "--force")
        assert guest.reply(suspended.command).status == 0
        assert guest.run("cat", "/run/marker").stdout == "alive\n"
        second = guest.run("kjump", "resume", "--from", TARGET_DEVICE, "--dry-run", check=False)
        assert second.status == 1 and "never run twice" in second.stderr


_STARTS_A_MACHINE = """
import sys, time
from pathlib import Path
from kjump.lab.machine.qemu import VirtualMachine
from kjump.lab.machine.qemu_config import VirtualMachineConfig
with VirtualMachine(VirtualMachineConfig(Path(sys.argv[1]), None, "panic=0")) as machine:
    print(machine._process.pid, flush=True)
    time.sleep(600)
"""


def test_a_machine_dies_with_whoever_started_it(installation: Installation) -> None:
    command = [sys.executable, "-c", _STARTS_A_MACHINE, str(installation.kernel.image)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        os.kill(pid, 0)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{pid}"):  # noqa: PTH110
        assert time.monotonic() < deadline, "QEMU is still there"
        time.sleep(0.05)
