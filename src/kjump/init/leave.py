"""How PID 1 of a second kernel makes sure that A comes back: the way is open before anything else is done.

It leads to A from the ordinary slot and, where memory was set aside for that, from the crash slot: a panic goes there
too. What PID 1 then cannot cope with ends here.
"""

from __future__ import annotations

import contextlib
import traceback

from kjump.errors import KjumpError
from kjump.gates import GATE_SIZE, Gate
from kjump.hibernate.report import Report
from kjump.host import procfs
from kjump.kexec import loader, mailbox
from kjump.kexec.physical import read_physical
from kjump.kexec.way_back import WayBack


def open_way(way: WayBack) -> None:
    """Load what leads to A, into the crash slot too if there is one; HostError when this kernel refuses."""
    loader.current().load(way.plan())
    crash_kernel = procfs.crash_kernel()
    if crash_kernel is not None:
        loader.current().load(way.crash_plan(crash_kernel))


def gate_of(way: WayBack) -> Gate:
    """Return the gate's fields as A's coming in left them; HostError when /dev/mem is refused, FormatError: no gate."""
    return Gate.unpack(read_physical(way.gate, GATE_SIZE))


def failure_of(error: BaseException) -> Report:
    """Return what to report of an `error` in a second kernel: the reason and, for a surprise, where it was."""
    if isinstance(error, KjumpError):
        return Report(reason=str(error))
    where = "".join(traceback.format_exception(error)[-3:])
    reason = f"unexpected {type(error).__name__} in the second kernel: {error}"
    return Report(reason=reason, traceback=where[-1500:])


def take(way: WayBack, error: BaseException) -> None:
    """Go back to A because of `error`, and tell A if the mailbox can be reached; returns only when no way is open.

    A finds no report otherwise, and says so.
    """
    with contextlib.suppress(Exception):
        gate = gate_of(way)
        box = mailbox.PeerMailbox.at_physical(gate.mailbox, gate.cookie)
        box.report(mailbox.Outcome.FAILED, failure_of(error).to_json())
    with contextlib.suppress(Exception):
        loader.current().load(way.plan())  # a resident peer has its door there instead; and opening may have failed
    with contextlib.suppress(Exception):
        loader.current().jump()
