"""Why B panicked, read by A out of what B left in its window.

When A is back, its own pages are in the window again, and B's stand where A's had been kept: in the source pages
of the loaded image, until that is unloaded. B's log is found there by B's VMCOREINFO, of which B tells the place.
"""

from __future__ import annotations

from kjump.dump import dmesg
from kjump.dump.kernel import KernelLayout
from kjump.errors import FormatError
from kjump.formats import notes, vmcoreinfo
from kjump.kexec import running
from kjump.kexec.shadow import ParkedMemory, Shadow, walk


def peer_memory(kcore: running.Kcore) -> ParkedMemory:
    """Return the second kernel's physical memory as it left it; valid while its image is loaded in A."""
    memory = kcore.physical()
    return ParkedMemory(memory, Shadow(walk(memory.read, running.image_list_head(kcore))))


def log_of_peer(kcore: running.Kcore, vmcoreinfo_address: int, vmcoreinfo_size: int) -> list[dmesg.Record]:
    """Return the second kernel's log; its VMCOREINFO note lies at physical `vmcoreinfo_address` (bytes).

    FormatError when what is found there is not a kernel's.
    """
    memory = peer_memory(kcore)
    for note in notes.iterate(memory.read(vmcoreinfo_address, vmcoreinfo_size)):
        if note.name == running.VMCOREINFO_NAME:
            return list(dmesg.records(KernelLayout(memory, vmcoreinfo.parse(note.desc))))
    raise FormatError("the second kernel left no VMCOREINFO note")
