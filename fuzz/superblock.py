"""The superblock of a target."""

from __future__ import annotations

import zlib

from harness import clean_errors, damaged, whole

from kjump.formats.superblock import SUPERBLOCK_SIZE, Details, State, Superblock

LONGEST = 1024
_SOUND = Superblock(
    state=State.COMPLETE,
    generation=3,
    image_length=1 << 20,
    stream_length=1 << 22,
    header_length=1 << 13,
    seek_table_offset=1 << 19,
    seek_table_length=1 << 10,
    capacity=1 << 30,
    details=Details(reason="none", rolled_back=2, others={"by": "fuzz", "list": [1, 2, {"deep": None}]}),
)
SEEDS = [_SOUND.pack(), _SOUND.evolve(state=State.EMPTY, details=Details()).pack()]
INPUTS = whole(SEEDS)


def one_input(data: bytes) -> None:
    """Read what `data` stands for, as it is and with a checksum that is right; what is read must be written again."""
    found = damaged(SEEDS, data)
    with clean_errors():
        Superblock.unpack(found)
    body = found[: SUPERBLOCK_SIZE - 4].ljust(SUPERBLOCK_SIZE - 4, b"\0")
    with clean_errors():
        superblock = Superblock.unpack(body + zlib.crc32(body).to_bytes(4, "little"))
        with clean_errors():
            assert Superblock.unpack(superblock.pack()) == superblock
