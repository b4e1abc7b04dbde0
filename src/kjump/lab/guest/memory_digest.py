"""In a peer: a digest of all of A's RAM, taken on entering and again just before leaving, with work between.

The channel is left out: through it the peer speaks. Run by a resident peer.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import time

from kjump.formats import elf
from kjump.init.peer_link import Residence
from kjump.kexec import channel
from kjump.ranges import Range, RangeSet

_CHUNK = 64 << 20
_WORK = 0.5


def digest_of_parked(without: RangeSet) -> tuple[str, int]:
    """Return a BLAKE2b digest of what /proc/vmcore holds, without some physical ranges, and how many bytes that is.

    That is all of A's RAM: what A keeps in this kernel's window and low memory lies in pages outside them now.
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


def main() -> None:
    """Print {"entering", "leaving": digests, "bytes", "control": the digest with the channel's memory in it}."""
    residence = Residence.here()
    pages = RangeSet([Range.of_size(residence.gate.mailbox, channel.SIZE)])
    entering, size = digest_of_parked(pages)
    time.sleep(_WORK)
    leaving, _ = digest_of_parked(pages)
    control, _ = digest_of_parked(RangeSet())
    print(json.dumps({"entering": entering, "leaving": leaving, "bytes": size, "control": control}))


if __name__ == "__main__":
    main()
