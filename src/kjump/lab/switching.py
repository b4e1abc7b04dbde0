"""Switching, tried for real: A and its peers at work, and many switches between them, nothing lost on any side."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kjump.errors import LabError
from kjump.initramfs.build import overlay
from kjump.lab.checks import Checked
from kjump.lab.machine import kernel as kernels
from kjump.lab.machine.qemu import Guest
from kjump.lab.machine.scene import Hardware, Scene

TOOLS = "/boot/peer-tools.img"
OTHER_KERNEL = "/boot/vmlinuz-other"
_STEADY = ("python3", "-ISc", "from kjump.lab.guest.steady_work import main; main()")
PICTURE = "switching.svg"
"""Drawn by `kjump inspect --plan` while two peers are there, in the scene's folder."""
_TIMEOUT = 1800.0
_PAGE = 4096
_SETTLED = 50
"""Switches after which memory should neither grow nor shrink any more."""


@dataclass
class Demo(Checked):
    """What switching in the lab came to; times in seconds, `checks` name -> whether it held.

    `times` has, for one peer and for two, the first switch after the boot, and min, median and p95 of the later ones.
    `free_slope` is the change of A's free memory with each jump (bytes), once it has settled.
    """

    kernel: str
    peer_kernel: str
    memory_bytes: int
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
    """Return the slope of the line that fits `values` best, a step of one between two."""
    return statistics.linear_regression(range(len(values)), values).slope


class _Story:
    """The scene, step by step."""

    def __init__(self, guest: Guest, demo: Demo) -> None:
        self.guest = guest
        self.demo = demo

    def kjump(self, *words: str) -> str:
        """Run kjump in the guest; return what it prints. LabError with all of that when it fails."""
        reply = self.guest.run("kjump", *words, timeout=_TIMEOUT, check=False)
        if reply.status:
            raise LabError(f"`kjump {' '.join(words)}` exited {reply.status}: {reply.stdout}{reply.stderr}".strip())
        return reply.stdout

    def command(self, peer: str, *words: str) -> Any:
        """Run a command in a peer; its output, as JSON."""
        return json.loads(json.loads(self.kjump("switch", "--json", peer, "--", *words))["message"])

    def boot(self, *words: str) -> list[dict[str, Any]]:
        """Start peers; what came of their first jobs."""
        return [json.loads(line) for line in self.kjump("boot-peer", "--json", *words).splitlines()]

    def start_work(self, *peers: str) -> None:
        """Let everybody work; A too."""
        self.guest.run(*_STEADY, "start")
        for peer in peers:
            self.kjump("switch", peer, "--", *_STEADY, "start")

    def verify(self, when: str, *peers: str) -> None:
        """See that everybody's work goes on as if nothing had happened."""
        answers = {"A": json.loads(self.guest.run(*_STEADY, "verify", check=False).stdout)}
        answers |= {peer: self.command(peer, *_STEADY, "verify") for peer in peers}
        for side, answer in answers.items():
            for name, good in answer["checks"].items():
                self.demo.checks[f"{side}_{name}_{when}"] = good

    def rounds(self, label: str, peers: Sequence[str], count: int, *options: str) -> dict[str, Any]:
        """Switch `count` times to each peer."""
        reply = self.guest.run(
            "python3", "-m", "kjump.lab.guest.switch_rounds", ",".join(peers), str(count), *options, timeout=_TIMEOUT
        )
        answer: dict[str, Any] = json.loads(reply.stdout)
        self.demo.times[label] = summary(answer["seconds"])
        self.demo.checks[f"{label}_messages"] = answer["wrong"] == 0 and len(answer["seconds"]) == count * len(peers)
        return answer

    def digest(self) -> None:
        """See that the peer leaves all of A's memory as it found it."""
        found = self.command("B", "python3", "-ISc", "from kjump.lab.guest.memory_digest import main; main()")
        self.demo.digested_bytes = found["bytes"]
        self.demo.checks["memory_untouched"] = found["entering"] == found["leaving"]
        self.demo.checks["digest_sees_change"] = found["control"] != found["entering"]
        self.demo.checks["digest_of_all"] = found["bytes"] > 0.6 * self.demo.memory_bytes


def run(
    folder: Path,
    *,
    version: str,
    peer_version: str | None = None,
    hardware: Hardware,
    rounds: int = 50,
    rounds_of_three: int = 20,
    jumps: int = 0,
    options: str = "",
    tell: Callable[[str], None] = lambda _: None,
) -> Demo:
    """Play it in `folder`: one peer (of `peer_version`), then two (`rounds_of_three`), then `jumps` for the leak test.

    Each part is left out when its number is 0. `options` are kernel options for A. LabError when a step fails.
    """
    kernel, other = kernels.build(version), kernels.build(peer_version or version)
    files = {
        TOOLS: overlay(["kjump.lab.guest.steady_work", "kjump.lab.guest.memory_digest"]),
        OTHER_KERNEL: other.image.read_bytes(),
    }
    tell("making the disks")
    scene = Scene(folder, kernel, hardware, target_size=1 << 20, options=options, files=files).prepare()
    demo = Demo(kernel.release, other.release, hardware.memory)
    tell("starting Linux A")
    with scene.machine() as machine:
        machine.guest.event("ready", timeout=120)
        story = _Story(machine.guest, demo)
        if rounds:
            tell("starting Linux B beside it")
            _one_peer(story, rounds, tell)
        if rounds_of_three:
            tell("starting two peers")
            _two_peers(story, rounds_of_three, folder / PICTURE, tell)
        if jumps:
            tell(f"{jumps} jumps, looking for lost memory")
            _leaks(story, jumps)
        machine.guest.start("python3", "-c", "from kjump.lab.guest.agent import power_off; power_off()")
        demo.checks["powered_off"] = machine.wait_off() == "guest-shutdown"
    demo.checks["disk"] = scene.check_root_disk()[0]
    return demo


def _initrds() -> tuple[str, ...]:
    return ("--initrd", "/boot/kjump-initramfs.img", "--initrd", TOOLS)


def _one_peer(story: _Story, rounds: int, tell: Callable[[str], None]) -> None:
    demo = story.demo
    (booted,) = story.boot(OTHER_KERNEL, "--name", "B", *_initrds())
    demo.boot_seconds = booted["report"]["boot_seconds"]
    demo.checks["peer_release"] = booted["report"]["release"] == demo.peer_kernel
    story.start_work("B")
    story.verify("before", "B")
    tell(f"{rounds} round trips")
    story.rounds("one_peer", ["B"], rounds)
    story.verify("after", "B")
    tell("a digest of all of A's memory")
    story.digest()
    story.verify("at_the_end", "B")
    free = _free(story)
    story.kjump("drop")
    # The window and the low memory, less what this command itself takes.
    demo.given_back_bytes = _free(story) - free
    demo.checks["memory_given_back"] = demo.given_back_bytes > 120 << 20


def _two_peers(story: _Story, rounds: int, picture: Path, tell: Callable[[str], None]) -> None:
    story.guest.run("sh", "-c", f"cat > /tmp/peers.toml <<'END'\n{_DECLARATION}END")
    booted = story.boot("--declared", "/tmp/peers.toml")
    story.demo.checks["two_peers"] = [b["peer"] for b in booted] == ["left", "right"]
    for peer in ("left", "right"):
        story.kjump("switch", peer, "--", *_STEADY, "start")
    tell(f"{rounds} rounds among three kernels")
    answer = story.rounds("two_peers", ["left", "right"], rounds)
    story.demo.checks["two_peers_counted"] = answer["switches"] == dict.fromkeys(("left", "right"), rounds + 2)
    story.verify("of_three", "left", "right")
    story.kjump("inspect", "--plan", "--svg", "/tmp/picture.svg")
    picture.write_text(story.guest.run("cat", "/tmp/picture.svg").stdout)
    story.kjump("drop")


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


def _leaks(story: _Story, jumps: int) -> None:
    story.boot(OTHER_KERNEL, "--name", "B", *_initrds())
    answer = story.rounds("leak_test", ["B"], jumps, "--memory")
    settled = min(_SETTLED, jumps // 4)
    story.demo.free_slope = round(slope(answer["free"][settled:]), 1)
    # The least that a kernel can lose with every jump is a page.
    story.demo.checks["no_leak"] = abs(story.demo.free_slope) < _PAGE
    story.kjump("drop")


def _free(story: _Story) -> int:
    code = "from kjump.lab.guest.switch_rounds import free_memory; print(free_memory())"
    return int(story.guest.run("python3", "-c", code).stdout)
