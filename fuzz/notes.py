"""ELF notes that anybody may have written."""

from __future__ import annotations

import foreign
import tinykernel
from harness import clean_errors, damaged, whole

from kjump.formats import notes

LONGEST = 1024
SEEDS = [
    tinykernel.note_bytes(),
    foreign.note("CORE", 1, bytes(335), 8) + foreign.note("VMCOREINFO", 0, tinykernel.info().encode(), 8),
    foreign.note("LINUX", 0x700, bytes(300)) + foreign.note("QEMU", 0, bytes(40)) + foreign.vmcoreinfo("A=1\n"),
]
INPUTS = whole(SEEDS)


def one_input(data: bytes) -> None:
    """Read what `data` stands for strictly, and as far as it makes sense."""
    found = damaged(SEEDS, data)
    with clean_errors():
        list(notes.iterate(found))
    for align in (4, 8):
        salvaged = notes.salvage(lambda at, length: found[at : at + length], len(found), align)
        again = list(notes.iterate(notes.encode(salvaged.notes)))
        ended = [note for note in salvaged.notes if not (note.name or note.desc or note.type)]
        assert ended or again == list(salvaged.notes)
