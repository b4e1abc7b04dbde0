"""Demonstrates switching: many switches between a system and its resident peers, all with a workload."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kjump.errors import LabError
from kjump.formats.record import Record
from kjump.initramfs.build import overlay
from kjump.lab.checks import Checked, Tell, silent
from kjump.lab.guest.activity import WorkloadAccount
from kjump.lab.guest.memory_digest import MemoryDigests
from kjump.lab.guest.switch_rounds import SwitchRounds
from kjump.lab.machine import kernel_source as kernels
from kjump.lab.machine.guest_channel import GuestChannel
from kjump.lab.machine.installation import Hardware, Installation
from kjump.lab.reports import BootedPeer

TOOLS = "/boot/peer-tools.img"
OTHER_KERNEL = "/boot/vmlinuz-other"
_WORKLOAD = ("python3", "-ISc", "from kjump.lab.guest.switching_workload import main; main()")
_DIGEST = ("python3", "-ISc", "from kjump.lab.guest.memory_digest import main; main()")
PICTURE = "switching.svg"
"""The file, in the demonstration's folder, that `kjump inspect --plan` draws while two peers are resident."""
_TIMEOUT = 1800.0
_PAGE = 4096
_SETTLED = 50
"""The number of switches after which the use of memory should be constant."""


@dataclass(frozen=True)
class SwitchingDemo(Checked):
    """The result of the demonstration; times in seconds, `checks` name -> whether it held.

    `times` has, for one peer and for two, the first switch after the boot, and min, median and p95 of the later ones.
    `free_slope` is the change of the first kernel's free memory with each jump (bytes), once it has settled.
    """

    kernel: str
    peer_kernel: str
    memory_bytes: int
    boot_seconds: float
    digested_bytes: int
    given_back_bytes: int
    free_slope: float | None
    times: dict[str, dict[str, float]]
    checks: dict[str, bool]


@dataclass
class _Findings:
    """The results so far; fields as in `SwitchingDemo`."""

    boot_seconds: float = 0.0
    digested_bytes: int = 0
    given_back_bytes: int = 0
    free_slope: float | None = None
    times: dict[str, dict[str, float]] = field(default_factory=dict)
    checks: dict[str, bool] = field(default_factory=dict)


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Return the first of `seconds` and min, median, 95th percentile and number of the later ones."""
    later = sorted(seconds[1:]) or list(seconds)
    p95 = later[min(len(later) - 1, int(len(later) * 0.95))]
    return {
        "first": seconds[0],
        "min": later[0],
        "median": round(statistics.median(later), 4),
        "p95": p95,
        "later": len(later),
    }


def slope(values: Sequence[float]) -> float:
    """Return the slope of the line that fits `values` best (least squares), with x = 0, 1, 2, ..."""
    return statistics.linear_regression(range(len(values)), values).slope


class _Switching:
    """A running machine with its peers; `found` collects the results."""

    def __init__(self, guest: GuestChannel) -> None:
        self.guest = guest
        self.found = _Findings()

    def kjump(self, *arguments: str) -> str:
        """Run kjump in the guest and return its output; LabError, with the output, when it fails."""
        reply = self.guest.run("kjump", *arguments, timeout=_TIMEOUT, check=False)
        if reply.status:
            raise LabError(f"`kjump {' '.join(arguments)}` exited {reply.status}: {reply.stdout}{reply.stderr}".strip())
        return reply.stdout

    def command(self, peer: str, *arguments: str) -> Record:
        """Run a command in a peer; return the JSON object that it prints."""
        report = Record.parse(self.kjump("switch", "--json", peer, "--", *arguments), "kjump switch")
        return Record.parse(report.text("message"), f"the command in peer {peer}")

    def boot(self, *arguments: str) -> list[BootedPeer]:
        """Start peers; return what the command reports about them."""
        lines = self.kjump("boot-peer", "--json", *arguments).splitlines()
        return [BootedPeer.from_json(Record.parse(line, "kjump boot-peer")) for line in lines]

    def start_work(self, *peers: str) -> None:
        """Start the workload in the first kernel and in `peers`."""
        self.guest.run(*_WORKLOAD, "start")
        for peer in peers:
            self.kjump("switch", peer, "--", *_WORKLOAD, "start")

    def verify(self, when: str, *peers: str) -> None:
        """Check that the workload goes on undisturbed in the first kernel (A) and in `peers`."""
        reply = self.guest.run(*_WORKLOAD, "verify", check=False)
        accounts = {"A": WorkloadAccount.from_json(reply.record("the workload"))}
        accounts |= {peer: WorkloadAccount.from_json(self.command(peer, *_WORKLOAD, "verify")) for peer in peers}
        for side, account in accounts.items():
            self.found.checks |= {f"{side}_{name}_{when}": good for name, good in account.checks.items()}

    def rounds(self, label: str, peers: Sequence[str], count: int, *options: str) -> SwitchRounds:
        """Switch `count` times to each peer."""
        reply = self.guest.run(
            "python3", "-m", "kjump.lab.guest.switch_rounds", ",".join(peers), str(count), *options, timeout=_TIMEOUT
        )
        done = SwitchRounds.from_json(reply.record("the switches"))
        self.found.times[label] = summary(done.seconds)
        self.found.checks[f"{label}_messages"] = done.wrong == 0 and len(done.seconds) == count * len(peers)
        return done

    def digest(self, memory: int) -> None:
        """Check that a switch changes nothing in the first kernel's memory, which is most of `memory` bytes."""
        digests = MemoryDigests.from_json(self.command("B", *_DIGEST))
        self.found.digested_bytes = digests.size
        self.found.checks["memory_untouched"] = digests.entering == digests.leaving
        self.found.checks["digest_sees_change"] = digests.control != digests.entering
        self.found.checks["digest_of_all"] = digests.size > 0.6 * memory

    def free_memory(self) -> int:
        """Return the bytes of free memory of the first kernel."""
        code = "from kjump.lab.guest.switch_rounds import free_memory; print(free_memory())"
        return int(self.guest.run("python3", "-c", code).stdout)


@dataclass(frozen=True)
class SwitchingOptions:
    """Numbers: round trips with one peer, rounds with two (`rounds_of_three` kernels), jumps of the search for leaks.

    A part with the number 0 is left out. `kernel_options` are for the first kernel; `peer_version` is the version of
    the peer's kernel (default: the first kernel's).
    """

    rounds: int = 50
    rounds_of_three: int = 20
    jumps: int = 0
    kernel_options: str = ""
    peer_version: str | None = None


def run(
    folder: Path,
    *,
    version: str,
    hardware: Hardware,
    how: SwitchingOptions = SwitchingOptions(),  # frozen
    tell: Tell = silent,
) -> SwitchingDemo:
    """Switch in `folder` as `how` says: with one peer, then with two, then in search of leaks.

    LabError when a step cannot be done.
    """
    kernel, other = kernels.build(version), kernels.build(how.peer_version or version)
    files = {
        TOOLS: overlay(["kjump.lab.guest.switching_workload", "kjump.lab.guest.memory_digest"]),
        OTHER_KERNEL: other.image.read_bytes(),
    }
    tell("making the disks")
    options = how.kernel_options
    system = Installation(folder, kernel, hardware, target_size=1 << 20, options=options, files=files).prepare()
    tell("booting")
    with system.machine() as machine:
        machine.guest.event("ready", timeout=120)
        switching = _Switching(machine.guest)
        found = switching.found
        if how.rounds:
            tell("booting a second kernel beside it")
            release = _one_peer(switching, how.rounds, hardware.memory, tell)
            found.checks["peer_release"] = release == other.release
        if how.rounds_of_three:
            tell("booting two peers")
            _two_peers(switching, how.rounds_of_three, folder / PICTURE, tell)
        if how.jumps:
            tell(f"{how.jumps} jumps, looking for lost memory")
            _leaks(switching, how.jumps)
        found.checks["powered_off"] = machine.power_off() == "guest-shutdown"
    found.checks["disk"] = system.check_root_disk()[0]
    return SwitchingDemo(kernel.release, other.release, hardware.memory, **vars(found))


def _initrds() -> tuple[str, ...]:
    return ("--initrd", "/boot/kjump-initramfs.img", "--initrd", TOOLS)


def _one_peer(switching: _Switching, rounds: int, memory: int, tell: Tell) -> str:
    """Switch between two kernels; return the kernel release that the peer reports."""
    found = switching.found
    (booted,) = switching.boot(OTHER_KERNEL, "--name", "B", *_initrds())
    found.boot_seconds = booted.boot_seconds
    switching.start_work("B")
    switching.verify("before", "B")
    tell(f"{rounds} round trips")
    switching.rounds("one_peer", ["B"], rounds)
    switching.verify("after", "B")
    tell("a digest of all of the first kernel's memory")
    switching.digest(memory)
    switching.verify("at_the_end", "B")
    free = switching.free_memory()
    switching.kjump("drop")
    # The memory of the window and the low memory, less what this command itself uses.
    found.given_back_bytes = switching.free_memory() - free
    found.checks["memory_given_back"] = found.given_back_bytes > 120 << 20
    return booted.release


def _two_peers(switching: _Switching, rounds: int, picture: Path, tell: Tell) -> None:
    switching.guest.run("sh", "-c", f"cat > /tmp/peers.toml <<'END'\n{_DECLARATION}END")
    booted = switching.boot("--declared", "/tmp/peers.toml")
    switching.found.checks["two_peers"] = [peer.name for peer in booted] == ["left", "right"]
    for peer in ("left", "right"):
        switching.kjump("switch", peer, "--", *_WORKLOAD, "start")
    tell(f"{rounds} rounds among three kernels")
    done = switching.rounds("two_peers", ["left", "right"], rounds)
    switching.found.checks["two_peers_counted"] = done.switches == dict.fromkeys(("left", "right"), rounds + 2)
    switching.verify("of_three", "left", "right")
    switching.kjump("inspect", "--plan", "--svg", "/tmp/picture.svg")
    picture.write_text(switching.guest.run("cat", "/tmp/picture.svg").stdout)
    switching.kjump("drop")


_DECLARATION = f"""
[[peer]]
name = "left"
kernel = "{OTHER_KERNEL}"
initrd = ["/boot/kjump-initramfs.img", "{TOOLS}"]
window_size = {96 << 20}

[[peer]]
name = "right"
initrd = ["/boot/kjump-initramfs.img", "{TOOLS}"]
window_size = {96 << 20}
"""


def _leaks(switching: _Switching, jumps: int) -> None:
    switching.boot(OTHER_KERNEL, "--name", "B", *_initrds())
    done = switching.rounds("leak_test", ["B"], jumps, "--memory")
    settled = min(_SETTLED, jumps // 4)
    lost = round(slope(done.free[settled:]), 1)
    switching.found.free_slope = lost
    # A leak is at least one page in every jump.
    switching.found.checks["no_leak"] = abs(lost) < _PAGE
    switching.kjump("drop")
