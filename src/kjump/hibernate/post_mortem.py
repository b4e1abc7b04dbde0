"""Why a second kernel panicked: its log, read by the first kernel after the jump.

When the first kernel is back, its own pages are in the window again, and the second kernel's pages are in the source
pages of the loaded image until that is unloaded. The log is found there by the second kernel's VMCOREINFO, whose
address is in the report.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kjump.errors import FormatError, KjumpError
from kjump.formats import notes, vmcoreinfo
from kjump.hibernate.report import Report
from kjump.host import kernel_memory
from kjump.kexec import loader
from kjump.kexec.kimage import ParkedMemory, Shadow, walk
from kjump.kexec.mailbox import Outcome

if TYPE_CHECKING:
    from kjump.dump import dmesg

_LAST_LINES = 12
_PANIC_BY_NMI = "NMI: Not continuing"


def peer_memory(kcore: kernel_memory.Kcore) -> ParkedMemory:
    """Return the second kernel's physical memory as it was at the jump back; valid while its image is loaded."""
    return ParkedMemory(kcore.physical(), peer_shadow(kcore))


def peer_shadow(kcore: kernel_memory.Kcore) -> Shadow:
    """Return where a loaded second kernel's pages are while the first kernel runs."""
    return Shadow(walk(kcore.physical().read, loader.current().image_list_head(kcore)))


def log_of_peer(kcore: kernel_memory.Kcore, vmcoreinfo_address: int, vmcoreinfo_size: int) -> list[dmesg.Record]:
    """Return the second kernel's log; its VMCOREINFO note lies at physical `vmcoreinfo_address` (size in bytes).

    FormatError when no kernel's VMCOREINFO or log is found there.
    """
    from kjump.dump import dmesg
    from kjump.dump.kernel import KernelLayout

    memory = peer_memory(kcore)
    for note in notes.iterate(memory.read(vmcoreinfo_address, vmcoreinfo_size)):
        if note.name == kernel_memory.VMCOREINFO_NAME:
            return list(dmesg.records(KernelLayout(memory, vmcoreinfo.parse(note.desc))))
    raise FormatError("the second kernel left no VMCOREINFO note")


def with_log(kcore: kernel_memory.Kcore, report: Report) -> Report:
    """Return `report`, which a second kernel wrote before it panicked, with what its log says.

    That is the message of the panic (`panic`) and the log's last lines (`log`).
    """
    try:
        lines = log_of_peer(kcore, *(report.vmcoreinfo or (0, 0)))
    except KjumpError as error:
        return replace(report, panic="", log=(f"its log could not be read: {error}",))
    from kjump.dump import dmesg

    return replace(
        report, panic=dmesg.panic_message(lines) or "", log=tuple(str(line) for line in lines[-_LAST_LINES:])
    )


def why_it_panicked(message: str) -> str:
    """Return the reason, for messages, of a panic with the kernel's `message` (empty: not known)."""
    if _PANIC_BY_NMI in message:
        return f"the second kernel hung, and was ended by the watchdog ({message})"
    return f"the second kernel panicked: {message or 'its log could not be read'}"


def reason(outcome: Outcome, report: Report) -> str:
    """Return a phrase that says why the second kernel failed; empty when it did not."""
    if outcome in (Outcome.RESUMED, Outcome.DONE):
        return ""
    if outcome == Outcome.GONE:
        return "the second kernel is gone"
    if outcome == Outcome.PANIC:
        return why_it_panicked(report.panic)
    if outcome in (Outcome.FAILED, Outcome.CANCELLED):
        return report.reason or "the second kernel gave no reason"
    why = f" ({report.reason})" if report.reason else ""
    return f"the second kernel came back without a report{why}"
