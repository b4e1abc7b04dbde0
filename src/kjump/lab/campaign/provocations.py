"""Functions that provoke faults and check the machine afterwards, for the fault campaign and for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kjump.errors import FormatError, LabError
from kjump.formats.superblock import SUPERBLOCK_SIZE, State
from kjump.lab.hibernation import STANDBY_FILE, STANDING_BY
from kjump.lab.machine.console import without_kernel_lines
from kjump.lab.machine.disks import read_superblock
from kjump.lab.machine.guest_channel import CommandReply
from kjump.lab.machine.installation import TARGET_DEVICE, Hardware, Installation
from kjump.lab.machine.qemu import VirtualMachine
from kjump.lab.machine.qemu_config import BadBlock

NO_DIRECT = "kjump.nodirect"
"""The kernel option that makes a boot restore through a third kernel in any case."""

PATIENCE = 180.0
"""Timeout in seconds for the boot of a machine, also on a busy host."""


def mark(machine: VirtualMachine) -> None:
    """Put a unique mark in the memory of the running system."""
    machine.guest.run("sh", "-c", "echo alive > /run/marker; sleep 100000 >/dev/null 2>&1 & echo $! > /run/pid")


def harm(machine: VirtualMachine) -> str:
    """Return what is wrong with a marked system; empty when it works as before."""
    guest = machine.guest
    reply = guest.run("sh", "-c", "cat /run/marker; kill -0 $(cat /run/pid) && kjump status --json", check=False)
    if not reply.stdout.startswith("alive\n"):
        return "its memory is another's"
    if '"loaded": false' not in reply.stdout:
        return "its process is gone, or a kernel is still loaded"
    # Checks that devices work again: the disk is read without the page cache.
    command = "echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda of=/dev/null bs=1M count=8"
    return "its disk cannot be read" if guest.run("sh", "-c", command, check=False).status else ""


def try_to_hibernate(machine: VirtualMachine, *options: str, target: str = TARGET_DEVICE) -> CommandReply:
    """Let a marked system try a hibernation that must fail; return the reply when the system went on unharmed.

    LabError when the hibernation succeeds, or the system is harmed.
    """
    reply = machine.guest.run("kjump", "hibernate", "--to", target, *options, check=False, timeout=300)
    if reply.status != 1:
        raise LabError(f"kjump hibernate exited {reply.status}: {reply.stderr.strip()}")
    wrong = harm(machine)
    if wrong:
        raise LabError(f"the system was harmed: {wrong}")
    return reply


def panic_while_second_kernel_boots(machine: VirtualMachine) -> None:
    """Let the system hibernate with a second kernel that finds no init, and panics before the way back is open.

    LabError when that does not end in a restart of the machine.
    """
    machine.guest.start("kjump", "hibernate", "--to", TARGET_DEVICE, "--append", "rdinit=/nowhere")
    _require_restart(machine)


@contextmanager
def standing_by_on_disk(machine: VirtualMachine) -> Iterator[str]:
    """Keep a second kernel on standby on a disk of the running `machine` during the context; yields the file's path.

    LabError when it is not on standby any more at the end.
    """
    guest = machine.guest
    guest.run(*STANDING_BY["disk"], timeout=PATIENCE)
    yield STANDBY_FILE
    said = guest.run("kjump", "status", "--json", check=False).stdout
    if '"state": "on disk"' not in said:
        raise LabError(f"no kernel waits on the disk any more: {said}")
    guest.run("kjump", "standby", "--off")


@contextmanager
def disk_exchanged_when_armed(disk: Path) -> Iterator[None]:
    """Replace `disk` by an empty one as soon as the system has armed it anew during the context.

    LabError at the end when it was not armed.
    """
    before = _cookie(disk)
    done, stop = threading.Event(), threading.Event()

    def watch() -> None:
        while not stop.is_set() and not done.is_set():
            with disk.open("r+b") as file:
                if _cookie(disk, State.ARMED) not in (b"", before):
                    file.write(bytes(SUPERBLOCK_SIZE))
                    done.set()
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
    if not done.is_set():
        raise LabError("the target was never armed")


def _cookie(disk: Path, state: State | None = None) -> bytes:
    try:
        superblock = read_superblock(disk)
    except FormatError:
        return b""
    return superblock.cookie if state in (None, superblock.state) else b""


def cancel_by_key(machine: VirtualMachine) -> CommandReply:
    """Press Esc while the second kernel saves a marked system; return the reply when the system went on unharmed."""
    before = len(machine.console())
    typed = threading.Thread(target=_press_escape, args=(machine, before))
    typed.start()
    try:
        return try_to_hibernate(machine, "--level", "19")
    finally:
        typed.join()


def _press_escape(machine: VirtualMachine, since: int) -> None:
    deadline = time.monotonic() + 120
    while "saving [" not in machine.console()[since:] and time.monotonic() < deadline:
        time.sleep(0.05)
    machine.type(b"\x1b")


def refusal_at_boot(installation: Installation, options: str = "", *, hardware: Hardware | None = None) -> str:
    """Boot a machine that must not resume, check that it boots as usual, and return the reason it gives.

    LabError when it tries to resume, or has the memory of the saved system.
    """
    with installation.machine(options, hardware=hardware) as machine:
        first = machine.guest.event("not-resumed", "resuming", timeout=PATIENCE)
        if first.name == "resuming":
            raise LabError("the boot took the image for good")
        reason = first.details.text("reason")
        machine.guest.event("ready", timeout=PATIENCE)
        said = without_kernel_lines(machine.console())
        if f"kjump: not resumed: {reason}" not in said and "cannot resume" not in said:
            raise LabError(f"the reason ({reason}) is not on the console: {said[-1000:]}")
        if machine.guest.run("cat", "/run/marker", "/run/workload.sock", check=False).stdout:
            raise LabError("this is the saved system, not one that has booted")
        return reason


def failing_restore(installation: Installation, *bad_blocks: BadBlock) -> str:
    """Boot a machine whose image is found damaged only during the restoration; return the reason of the next boot.

    The boot itself goes on as usual. LabError when it resumes.
    """
    with installation.machine(bad_blocks=bad_blocks) as machine:
        machine.guest.event("restore-begins", timeout=PATIENCE)
        ended = machine.guest.event("not-resumed", "going-back", timeout=PATIENCE)
        if ended.name == "going-back":
            raise LabError("a bad image was restored")
        machine.guest.event("ready", timeout=PATIENCE)
        machine.power_off()
    return refusal_at_boot(installation)


def failing_restore_in_third_kernel(installation: Installation) -> str:
    """Let a third kernel restore an image that is found damaged only then; return the reason of the next boot.

    LabError when the machine does not restart by itself, or resumes.
    """
    with installation.machine(NO_DIRECT) as machine:
        machine.guest.event("restore-begins", timeout=PATIENCE)
        _require_restart(machine)
    return refusal_at_boot(installation)


def _require_restart(machine: VirtualMachine) -> None:
    ended = machine.wait_off(PATIENCE)
    if ended != "guest-reset":
        raise LabError(f"the machine ended with {ended}, it did not restart")
