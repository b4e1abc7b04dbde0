"""Why B panicked, read by A out of what B left in its window.

When A is back, its own pages are in the window again, and B's stand where A's had been kept: in the source pages
of the loaded image, until that is unloaded. B's log is found there by B's VMCOREINFO, of which B tells the place.
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
    """Return the second kernel's physical memory as it left it; valid while its image is loaded in A."""
    return ParkedMemory(kcore.physical(), peer_shadow(kcore))


def peer_shadow(kcore: kernel_memory.Kcore) -> Shadow:
    """Return where a loaded second kernel's pages are while A runs."""
    return Shadow(walk(kcore.physical().read, loader.current().image_list_head(kcore)))


def log_of_peer(kcore: kernel_memory.Kcore, vmcoreinfo_address: int, vmcoreinfo_size: int) -> list[dmesg.Record]:
    """Return the second kernel's log; its VMCOREINFO note lies at physical `vmcoreinfo_address` (bytes).

    FormatError when what is found there is not a kernel's.
    """
    from kjump.dump import dmesg
    from kjump.dump.kernel import KernelLayout

    memory = peer_memory(kcore)
    for note in notes.iterate(memory.read(vmcoreinfo_address, vmcoreinfo_size)):
        if note.name == kernel_memory.VMCOREINFO_NAME:
            return list(dmesg.records(KernelLayout(memory, vmcoreinfo.parse(note.desc))))
    raise FormatError("the second kernel left no VMCOREINFO note")


def with_log(kcore: kernel_memory.Kcore, report: Report) -> Report:
    """Return what a second kernel that panicked noted when its job began, with what its log says.

    That is the `panic` message and the last lines (`log`).
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
    """Return the reason to give for a panic whose message is `message` (empty: not known)."""
    if _PANIC_BY_NMI in message:
        return f"the second kernel hung, and was ended by the watchdog ({message})"
    return f"the second kernel panicked: {message or 'its log could not be read'}"


def reason(outcome: Outcome, report: Report) -> str:
    """Return in words why the second kernel failed, nothing when it did not."""
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
