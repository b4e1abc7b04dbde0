"""Digests of the first kernel's RAM, made in a resident peer when it is entered and just before it leaves.

The channel is left out, because the peer writes to it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import time
from dataclasses import dataclass

from kjump.formats import elf
from kjump.formats.record import JsonObject, Record
from kjump.init.peer_link import Residence
from kjump.kexec import channel
from kjump.ranges import Range, RangeSet

_CHUNK = 64 << 20
_WORK = 0.5


def digest_of_parked(without: RangeSet) -> tuple[str, int]:
    """Return a BLAKE2b digest of /proc/vmcore without some physical ranges, and the number of bytes digested.

    /proc/vmcore has all of the first kernel's RAM contents: those of this kernel's window and low memory are now in
    source pages outside them.
    """
    digest, size = hashlib.blake2b(), 0
    fd = os.open("/proc/vmcore", os.O_RDONLY)
    try:
        header = elf.parse_header(os.pread(fd, 64, 0))
        for load in elf.parse_program_headers(header, os.pread(fd, header.table.size, header.table.start)):
            if load.type != elf.PT_LOAD:
                continue
            for part in RangeSet([Range.of_size(load.paddr, load.filesz)]) - without:
                for at in range(part.start, part.end, _CHUNK):
                    length = min(_CHUNK, part.end - at)
                    with mmap.mmap(fd, length, prot=mmap.PROT_READ, offset=load.offset + at - load.paddr) as view:
                        digest.update(view)
                    size += length
    finally:
        os.close(fd)
    return digest.hexdigest(), size


@dataclass(frozen=True)
class MemoryDigests:
    """Digests of `size` bytes of memory: when the peer was entered (`entering`) and before it left (`leaving`).

    `control` includes the channel's memory, and must differ from the others.
    """

    entering: str
    leaving: str
    size: int
    control: str

    def to_json(self) -> JsonObject:
        """Return it as a JSON object."""
        return {"entering": self.entering, "leaving": self.leaving, "bytes": self.size, "control": self.control}

    @classmethod
    def from_json(cls, record: Record) -> MemoryDigests:
        """Read what `to_json` made; FormatError."""
        size = record.integer("bytes", low=1)
        return cls(record.text("entering"), record.text("leaving"), size, record.text("control"))


def main() -> None:
    """Print the digests as JSON."""
    residence = Residence.here()
    pages = RangeSet([Range.of_size(residence.gate.mailbox, channel.SIZE)])
    entering, size = digest_of_parked(pages)
    time.sleep(_WORK)
    leaving, _ = digest_of_parked(pages)
    control, _ = digest_of_parked(RangeSet())
    print(json.dumps(MemoryDigests(entering, leaving, size, control).to_json()))


if __name__ == "__main__":
    main()
