"""Images: the seek table at their end, the frames without it, the headers and notes at their beginning."""

from __future__ import annotations

import struct

from examples import FACTS
from harness import clean_errors, damaged, whole

from kjump import _core
from kjump.formats.seekable import FOOTER_SIZE, SeekTable, table_length, walk
from kjump.image.headers import build_headers, parse_headers
from kjump.kexec.kimage import Shadow, ShadowRun
from kjump.ranges import Range, RangeSet

LONGEST = 1024
_SHADOW = Shadow([ShadowRun(2, 66, 3), ShadowRun(7, 90, 1)])
_HEAD = build_headers(RangeSet([Range(1, 9), Range(64, 70)]), b"", FACTS, _SHADOW)
_FRAMES = [_core.compress_bytes(data) for data in (b"first" * 100, bytes(300_000), bytes(range(256)) * 5)]
_TABLE = SeekTable(
    b"".join(
        struct.pack("<II", len(frame), size) + frame[-4:]
        for frame, size in zip(_FRAMES, (500, 300_000, 1280), strict=True)
    )
)
SEEDS = [_HEAD.head, _TABLE.encode(), b"".join(_FRAMES), b"".join(_FRAMES) + _TABLE.encode()]
INPUTS = whole(SEEDS)


def one_input(data: bytes) -> None:
    """Read what `data` stands for as headers, as a seek table and as a stream."""
    found = damaged(SEEDS, data)
    with clean_errors():
        contents = parse_headers(found)
        with clean_errors():
            _ = (contents.facts.kind, contents.facts.kept_head, contents.spans_to_restore)
    with clean_errors():
        table_length(found[-FOOTER_SIZE:])
        table = SeekTable.decode(found[-table_length(found[-FOOTER_SIZE:]) :])
        _ = (list(table), table.stream_length, table.compressed_length)
    table = walk(lambda at, length: found[at : at + length], len(found))
    for frame in table:
        part = found[frame.compressed_offset : frame.compressed_offset + frame.compressed_size]
        with clean_errors():
            if frame.size < 1 << 20:
                _core.decompress_frame(part, frame.size, frame.checksum)
