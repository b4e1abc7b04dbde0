"""The saver role, in B: save A to the target and switch off; whatever goes wrong, jump back to A and say why."""

from __future__ import annotations

import dataclasses
import os
import time
import traceback
from typing import Any

from kjump.errors import KjumpError
from kjump.gates import GATE_SIZE, Gate
from kjump.hibernate import filesystems
from kjump.hibernate.save import SaveCancelled, SaveResult, open_parked, save
from kjump.hibernate.target import find_target
from kjump.kexec import host, mailbox
from kjump.kexec.linux import way_back_plan
from kjump.ranges import Range, RangeSet
from kjump.roles.console import ProgressBar
from kjump.roles.system import Role, read_physical, uptime

_TARGET_TIMEOUT = 5.0


def run(role: Role) -> None:
    """Do the job; returns only when even the way back is closed."""
    gate_at = int(role.job["gate"])
    gate = Gate.unpack(read_physical(gate_at, GATE_SIZE))
    box = mailbox.PeerMailbox(gate.mailbox, gate.cookie)
    report: dict[str, Any] = {"boot_seconds": uptime()}
    try:
        host.load(way_back_plan(gate_at, gate))
        result = _save(role, gate, box.head)
        role.console.line(f"kjump: A is saved ({result.image_bytes / 1e6:.1f} MB on the target); switching off")
        role.status.send("saved", **result.as_report())
        host.power_off()
    except SaveCancelled as error:
        box.report(mailbox.OUTCOME_CANCELLED, report | {"reason": str(error)})
    except KjumpError as error:
        box.report(mailbox.OUTCOME_FAILED, report | {"reason": str(error)})
    except BaseException as error:
        where = "".join(traceback.format_exception(error)[-3:])
        reason = f"unexpected {type(error).__name__} in the saver: {error}"
        box.report(mailbox.OUTCOME_FAILED, report | {"reason": reason, "traceback": where[-1500:]})
    role.console.line("kjump: going back to A")
    role.status.send("going-back")
    host.jump()


def _save(role: Role, gate: Gate, head: int) -> SaveResult:
    job = role.job
    if job.get("fault") == "exception":
        raise RuntimeError("an exception was asked for by the job")
    parked = open_parked(head)
    role.status.send("save-begins")
    facts = job["facts"] | {
        "gate": _gate_facts(gate),
        "saved_at": time.time(),
        "file_systems": filesystems.record(job["file_systems"]),
    }
    with find_target(bytes.fromhex(job["cookie"]), job["target"], timeout=_TARGET_TIMEOUT) as target:
        bar = ProgressBar("saving", cancellable=True)
        try:
            return save(
                parked,
                RangeSet(Range(*pair) for pair in job["ram"]),
                facts,
                target,
                free_pages=job["free_pages"],
                level=int(job["level"]),
                threads=os.cpu_count() or 1,
                progress=bar,
            )
        finally:
            bar.close()


def _gate_facts(gate: Gate) -> dict[str, Any]:
    facts = dataclasses.asdict(gate)
    facts["cookie"] = gate.cookie.hex()
    return facts
