"""A kernel on standby on the machine in `crash`."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from crash import COOKIE, Machine

from kjump.gates import Gate
from kjump.hibernate import suspend
from kjump.hibernate.jobs import SaveJob
from kjump.init import peer_link
from kjump.init.roles import peer
from kjump.kexec import mailbox
from kjump.kexec.channel import SIZE, Channel
from kjump.peers import lifecycle, standby
from kjump.peers.registry import Ledger, Peer, State, boot_id
from kjump.ranges import Range
from kjump.target.device import Target


class _Residence:
    """A resident kernel's place beside A, on plain memory."""

    def __init__(self, made: Machine, channel: Channel) -> None:
        self._machine, self.channel = made, channel

    def look_again(self) -> Gate:
        return Gate()

    def cover_crash(self) -> bool:
        return False

    def away(self, answer: peer_link.Answer) -> None:
        self._machine.alive("B")
        peer_link.Residence._report(self, replace(answer, report=replace(answer.report, resident=True)))  # type: ignore[arg-type]
        self._machine.go_home()

    def leave(self, answer: peer_link.Answer) -> None:
        self._machine.alive("B")
        peer_link.Residence._report(self, answer)  # type: ignore[arg-type]
        self._machine.go_home()


def travel(machine: Machine, folder: Path, **more: Any) -> suspend.Trip:
    """Leave A for the kernel on standby; see `stand_by`."""
    return standby.travel(machine.request(**more), machine.told.append, folder)


def stand_by(made: Machine, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the machine have a kernel on standby, remembered in `folder`: `travel` goes there."""
    memory = bytearray(SIZE)
    channel = Channel(memory, COOKIE)

    def report(outcome: mailbox.Outcome, report: dict[str, Any]) -> None:
        channel.note(report, outcome)

    def b() -> None:
        visit = peer._Visit(made.role({}), _Residence(made, channel), channel.order())  # type: ignore[arg-type]
        visit.leave(visit.work())

    def save_job(request: Any, kcore: Any, around: Any, layout: Any, target: Target, tell: Any) -> SaveJob:
        made.cookie = target.arm().cookie
        return made.job()

    made.b, made.report, made.channel = b, report, memory  # type: ignore[method-assign]
    page = SimpleNamespace(memory=memory, address=0x200000, close=lambda: None)
    patch.setattr(lifecycle.hugetlbfs, "StandingPage", lambda path: page)
    patch.setattr(lifecycle.hugetlbfs, "remove", lambda path: None)
    patch.setattr(lifecycle, "_is_other_image", lambda state: False)
    patch.setattr(lifecycle.kernel_memory, "_known", {})
    patch.setattr(lifecycle, "_with_log", lambda report: replace(report, panic="Kernel panic"))
    kcore = SimpleNamespace(vmcoreinfo_note=lambda: b"")
    patch.setattr(standby, "kernel_memory", SimpleNamespace(Kcore=lambda: contextlib.nullcontext(kcore)))
    patch.setattr(standby.described, "describe_machine", lambda gate, **_: None)
    patch.setattr(standby, "layout_of", lambda *_: SimpleNamespace(window=Range(0, 1 << 20)))
    patch.setattr(suspend, "save_job", save_job)
    patch.setattr(suspend, "time_limit", lambda *_: made.time_limit)
    patch.setattr(standby, "_again", lambda tell, folder: None)
    place = Peer(standby.NAME, "k", ["i"], "", Range(16 << 20, 17 << 20), Range(4096, 8192), 16 << 20)
    with Ledger(folder) as ledger:
        ledger.write(State(boot_id(), COOKIE.hex(), page.address, 0x5002, {"kexec_image": 0xFFFF}, peers=[place]))
