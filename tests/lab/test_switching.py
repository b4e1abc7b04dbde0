"""Second kernels that stay: switches both ways, two of them at once, other versions, and what goes wrong in them."""

import json
import time
from pathlib import Path

import pytest
from test_failures import assert_unharmed

from kjump.hibernate import snapshot
from kjump.image.compression import LEVELS
from kjump.lab import hibernation, switching
from kjump.lab.campaign.provocations import mark
from kjump.lab.machine.console import without_kernel_lines
from kjump.lab.machine.guest_channel import CommandReply, GuestChannel
from kjump.lab.machine.installation import TARGET_DEVICE, Hardware, Installation
from kjump.lab.machine.qemu import VirtualMachine
from kjump.lab.machine.qemu_config import WATCHDOG
from kjump.lab.switching import SwitchingOptions

MIB = 1 << 20


@pytest.mark.parametrize(
    ("version", "peer_version", "hardware", "rounds"),
    [
        ("6.12", "6.12", Hardware(memory=640 * MIB, cpus=2), 10),
        ("6.12", "6.1", Hardware(memory=640 * MIB, cpus=2), 3),
        ("6.1", "6.12", Hardware(memory=640 * MIB, cpus=1, cpu="max,la57=off"), 3),
    ],
    ids=["6.12-6.12", "6.12-under-it-6.1", "6.1-under-it-6.12"],
)
def test_two_and_three_kernels_take_turns(
    folder: Path, version: str, peer_version: str, hardware: Hardware, rounds: int
) -> None:
    how = SwitchingOptions(rounds, rounds_of_three=3, peer_version=peer_version)
    demo = switching.run(folder, version=version, hardware=hardware, how=how)
    assert demo.ok, (demo.failed, demo.given_back_bytes)
    assert demo.times["one_peer"]["later"] == rounds - 1


def kjump(guest: GuestChannel, *words: str, status: int = 0) -> CommandReply:
    reply = guest.run("kjump", *words, check=False, timeout=300)
    assert reply.status == status, (words, reply)
    return reply


def states(guest: GuestChannel) -> dict[str, str]:
    peers = json.loads(guest.run("kjump", "status", "--json", check=False).stdout)["peers"]
    return {p["name"]: p["state"] for p in peers}


def on_console(machine: VirtualMachine, text: str, since: int) -> None:
    """Wait until `text` comes out of the serial console, behind the first `since` characters."""
    deadline = time.monotonic() + 60
    while text not in without_kernel_lines(machine.console()[since:]):
        assert time.monotonic() < deadline, machine.console()[since:]
        time.sleep(0.1)


DECLARATION = '[[peer]]\nname = "left"\nwindow_size = 100663296\n[[peer]]\nname = "right"\nwindow_size = 100663296\n'


def test_jobs_messages_and_what_goes_wrong(installation: Installation) -> None:
    with installation.machine() as machine:
        guest = machine.guest
        guest.event("ready")
        kjump(guest, "switch", status=2)
        guest.run("sh", "-c", f"cat > /tmp/peers.toml <<'END'\n{DECLARATION}END")
        kjump(guest, "boot-peer", "--declared", "/tmp/peers.toml")
        assert states(guest) == {"left": "resident", "right": "resident"}
        assert "name one of left, right" in kjump(guest, "switch", status=2).stderr
        assert "resident" in kjump(guest, "boot-peer", status=2).stderr
        assert "`kjump drop`" in kjump(guest, "load", f"/boot/vmlinuz-{installation.kernel.release}", status=2).stderr
        assert "\n|" in kjump(guest, "inspect", "--plan").stdout

        # Bytes go both ways; a command's output and its exit status come back.
        guest.run("sh", "-c", "head -c 500000 /dev/urandom > /tmp/there")
        kjump(guest, "switch", "left", "--send", "/tmp/there", "--receive", "/tmp/back")
        guest.run("cmp", "/tmp/there", "/tmp/back")
        copy = "import sys; sys.stdout.write(sys.stdin.read().upper()); sys.exit(3)"
        guest.run("sh", "-c", "echo hello > /tmp/hello")
        reply = kjump(guest, "switch", "right", "--send", "/tmp/hello", "--", "python3", "-ISc", copy, status=3)
        assert reply.stdout == "HELLO\n"
        assert "cannot run /no/such" in kjump(guest, "switch", "right", "--", "/no/such", status=1).stderr
        guest.run("sh", "-c", "head -c 2000000 /dev/zero > /tmp/large")
        assert "too long" in kjump(guest, "switch", "left", "--send", "/tmp/large", status=2).stderr

        # A program in the peer switches home by itself, and goes on when A comes again.
        home = ("kjump", "switch", "--send", "/proc/version")
        assert kjump(guest, "switch", "left", "--", *home).stdout.startswith("Linux version")
        assert "while a program in it waits" in kjump(guest, "switch", "left", "--", "/bin/x", status=1).stderr
        assert kjump(guest, "switch", "left", "--send", "/tmp/hello").stdout == "hello\n"

        # One peer panics: A is back and says why, the other lives on.
        panic = "open('/proc/sysrq-trigger', 'w').write('c')"
        reply = kjump(guest, "switch", "left", "--", "python3", "-ISc", panic, status=1)
        assert "the second kernel panicked: Kernel panic - not syncing: sysrq triggered crash" in reply.stderr
        assert states(guest) == {"left": "gone", "right": "resident"}
        assert "is gone" in kjump(guest, "switch", "left", status=2).stderr
        kjump(guest, "restart", "left")
        assert states(guest) == {"left": "resident", "right": "resident"}
        assert kjump(guest, "switch", "left", "--send", "/tmp/hello").stdout == "hello\n"
        assert kjump(guest, "switch", "right", "--send", "/tmp/hello").stdout == "hello\n"
        reply = kjump(guest, "switch", "right", "--time-limit", "1", "--", "python3", "-ISc",
                      "import time; time.sleep(99)", status=1)  # fmt: skip
        assert "longer than its time limit of 1 s" in reply.stderr
        kjump(guest, "drop")
        assert states(guest) == {}


def test_a_kernel_on_standby_saves_the_boot_of_a_second_kernel(installation: Installation) -> None:
    with installation.machine() as machine:
        guest = machine.guest
        guest.event("ready")
        hibernation.start_workload(guest, 0)
        kjump(guest, "standby")
        asked = time.monotonic()
        taken = json.loads(kjump(guest, "snapshot", "--to", TARGET_DEVICE, "--json").stdout)
        assert taken["taken"] and not taken["rolled_back"] and set(snapshot.PAUSE) <= set(taken["phases"])
        assert states(guest) == {"standby": "resident"}
        command = guest.start("kjump", "hibernate", "--to", TARGET_DEVICE, "--level", "auto", "--json")
        guest.event("save-begins", timeout=120, since=asked)
        saved = guest.event("saved", timeout=120, since=asked).details
        assert saved.integer("level", low=min(LEVELS), high=max(LEVELS)) in LEVELS
        assert not [e for e in guest.events if e.name == "role" and e.time > asked], "nobody boots"
        assert machine.wait_off(300) == "guest-shutdown"
    with installation.machine() as machine:
        resumed = hibernation.resume(machine, command)
        assert resumed.reply.status == 0, resumed.reply
        assert json.loads(resumed.reply.stdout)["resumed"]
        assert hibernation.verify_workload(machine.guest).ok
        assert states(machine.guest) == {"standby": "resident"}
        kjump(machine.guest, "standby", "--off")
        assert states(machine.guest) == {}


def test_a_kernel_on_standby_waits_on_disk(installation: Installation) -> None:
    """It saves once and once more, from the same file, and needs no memory between."""
    saved, file = ("kjump", "hibernate", "--to", TARGET_DEVICE, "--json"), "/standby"
    with installation.machine() as machine:
        guest = machine.guest
        guest.event("ready")
        kjump(guest, "standby", "--on-disk", "/etc/passwd", status=2)
        hibernation.start_workload(guest, 0)
        kjump(guest, "standby", "--on-disk", file)
        assert states(guest) == {"standby": "on disk"}
        assert guest.run("cat", "/sys/kernel/kexec_loaded").stdout == "0\n"
        asked = time.monotonic()
        assert json.loads(kjump(guest, "snapshot", "--to", TARGET_DEVICE, "--json").stdout)["taken"]
        failed = kjump(guest, *saved[1:], "--fault", "panic:0@0.5", status=1)
        assert "the second kernel panicked" in failed.stderr
        assert states(guest) == {"standby": "on disk"}
        command = guest.start(*saved)
        assert machine.wait_off(300) == "guest-shutdown"
        assert not [e for e in guest.events if e.name == "role" and e.time > asked], "nobody boots"
    for last in (False, True):
        with installation.machine() as machine:
            guest = machine.guest
            resumed = hibernation.resume(machine, command)
            assert resumed.reply.status == 0, resumed.reply
            assert json.loads(resumed.reply.stdout)["resumed"]
            assert hibernation.verify_workload(guest).ok
            assert states(guest) == {"standby": "on disk"}
            if not last:
                command = guest.start(*saved)
                assert machine.wait_off(300) == "guest-shutdown"
                continue
            guest.run("sh", "-c", f"dd if=/dev/zero of={file} bs=1 seek=1000000 count=8 conv=notrunc")
            damaged = kjump(guest, *saved[1:], status=1)
            assert f"{file} is damaged (" in damaged.stderr
            kjump(guest, "standby", "--off")
            assert states(guest) == {}
            assert guest.run("ls", file, check=False).status


def test_a_shell_in_a_peer_is_left_with_its_status(installation: Installation) -> None:
    with installation.machine() as machine:
        guest = machine.guest
        guest.event("ready")
        kjump(guest, "boot-peer")
        # kjump's own initramfs has no other shell than Python.
        for status in (7, 0):
            before = len(machine.console())
            command = guest.start("kjump", "switch", "--job", "shell")
            on_console(machine, "a shell of the second kernel", before)
            machine.type(b"import os; print(os.uname().release, 6 * 7)\r")
            on_console(machine, f"{installation.kernel.release} 42", before)
            machine.type(f"raise SystemExit({status})\r".encode())
            reply = guest.reply(command, 60)
            assert reply.status == status, reply
        assert states(guest) == {"second": "resident"}


def test_a_resident_peer_that_hangs_is_ended_by_the_watchdog(installation: Installation) -> None:
    with installation.machine(extra=WATCHDOG) as machine:
        guest = machine.guest
        guest.event("ready")
        mark(machine)
        kjump(guest, "boot-peer", "--name", "B")
        for cpu in (0, 1):
            code = f"from kjump.init.jobs.faults import Fault; Fault('spin:{cpu}').due(1.0)"
            hung = kjump(guest, "switch", "B", "--watchdog", "8", "--", "python3", "-c", code, status=1)
            assert "ended by the watchdog" in hung.stderr
            assert states(guest) == {"B": "gone"}
            kjump(guest, "restart", "B")
            assert states(guest) == {"B": "resident"}
        kjump(guest, "drop")
        assert_unharmed(machine)
