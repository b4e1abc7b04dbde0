"""The kernel's own hibernation (swsusp) in the lab's machines, for comparison.

It gets its best case: a swap disk of its own, no limit on the image's size, and a boot without initramfs, in which the
kernel resumes before it starts a program. Sizes and speeds are taken from its messages on the console.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace

from kjump.errors import LabError
from kjump.formats.record import Record
from kjump.lab.machine.guest_channel import CommandReply, GuestChannel
from kjump.lab.machine.installation import ROOT_DEVICE
from kjump.lab.machine.qemu import VirtualMachine

_PREPARE = """
import subprocess, sys
device, compressor = sys.argv[1:]
for command in (["mkswap", device], ["swapon", device]):
    subprocess.run(command, check=True, capture_output=True)
for name, value in (("/sys/power/disk", "shutdown"), ("/sys/power/image_size", str(1 << 40)),
                    ("/sys/module/hibernate/parameters/compressor", compressor)):
    if value:
        open(name, "w").write(value)
"""
_ASK = 'import os; os.write(os.open("/sys/power/state", os.O_WRONLY), b"disk")'
_TRY = f"""
import errno, json, os, subprocess
open("/dev/kmsg", "w").write("lab: swsusp is asked\\n")
number = 0
try:
    {_ASK}
except OSError as error:
    number = error.errno
log = subprocess.run(["dmesg"], capture_output=True, text=True).stdout.rpartition("lab: swsusp is asked")[2]
lines = [line.partition("] ")[2] for line in log.splitlines() if "hibernation" in line]
print(json.dumps({{"errno": errno.errorcode.get(number, str(number)), "log": lines}}))
"""


def prepare(guest: GuestChannel, device: str, compressor: str = "") -> None:
    """Make swap space on `device` and use it; `compressor` is the kernel's own (lzo) unless given."""
    guest.run("python3", "-c", _PREPARE, device, compressor)


def finish(guest: GuestChannel, device: str) -> None:
    """Take the swap space out of use."""
    guest.run("swapoff", device)


@dataclass(frozen=True)
class SwsuspRefusal:
    """A refusal by swsusp: the name of the error, and the kernel's messages about it."""

    errno: str
    log: tuple[str, ...]

    @classmethod
    def from_json(cls, record: Record) -> SwsuspRefusal:
        """Read what the guest printed; FormatError."""
        return cls(record.text("errno"), record.texts("log"))


def refusal(guest: GuestChannel) -> SwsuspRefusal:
    """Ask for a hibernation that must be refused; return the refusal.

    LabError when it was not refused: the machine is then off, or came back.
    """
    reply = guest.run("python3", "-c", _TRY, timeout=600)
    answer = SwsuspRefusal.from_json(reply.record("the attempt to hibernate with swsusp"))
    if answer.errno == "0":
        raise LabError("swsusp saved the machine and came back: it was not full enough to show anything")
    return answer


@dataclass(frozen=True)
class SwsuspSaved:
    """A machine that swsusp has switched off: the unfinished command's number, seconds, bytes on the disk."""

    command: int
    seconds: float
    write_seconds: float
    image_bytes: int
    memory_bytes: int


def suspend(machine: VirtualMachine, timeout: float = 300) -> SwsuspSaved:
    """Let swsusp save the running `machine`, and wait until it is off; LabError when it comes back instead."""
    asked = time.monotonic()
    command = machine.guest.start("python3", "-c", _ASK)
    reason = machine.wait_off(timeout)
    off = time.monotonic()
    refused = machine.guest.finished(command)
    if refused is not None or reason != "guest-shutdown":
        said = refused.stderr.strip() if refused else f"the machine ended with {reason}"
        raise LabError(f"swsusp did not save the machine: {said}")
    console = machine.console()
    size = re.findall(r"Image size after compression: (\d+) kbytes", console)
    memory, write_seconds = _speed("Wrote", console)
    return SwsuspSaved(command, off - asked, write_seconds, int(size[-1]) << 10 if size else memory, memory)


@dataclass(frozen=True)
class SwsuspResumed:
    """A machine that is back: the reply, seconds from its start, and how long it read the image."""

    reply: CommandReply
    seconds: float
    read_seconds: float


def resuming_machine(machine: VirtualMachine, device: str) -> VirtualMachine:
    """Return `machine`, not yet started, as one whose kernel resumes from `device`, without initramfs."""
    line = f"console=ttyS0 panic=-1 root={ROOT_DEVICE} rootfstype=ext4 ro resume={device}"
    return VirtualMachine(replace(machine.config, initrd=None, command_line=line), log=machine.log)


def resume(machine: VirtualMachine, command: int, timeout: float = 300) -> SwsuspResumed:
    """Wait until the freshly started `machine` is back and `command` has replied."""
    reply = machine.guest.reply(command, timeout)
    _, read_seconds = _speed("Read", machine.console())
    return SwsuspResumed(reply, reply.time - machine.started, read_seconds)


def _speed(verb: str, console: str) -> tuple[int, float]:
    """Return (bytes, seconds) of the kernel's last line that begins with `verb`; zeros when there is none."""
    found = re.findall(rf"{verb} (\d+) kbytes in ([\d.]+) seconds", console)
    return (int(found[-1][0]) << 10, float(found[-1][1])) if found else (0, 0.0)
