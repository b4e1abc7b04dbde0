"""VMCOREINFO, and all that is learned from it: page fields, the kernel's layout, a selection of pages, the log."""

from __future__ import annotations

import foreign
import tinykernel
from harness import clean_errors

from kjump.dump import dmesg
from kjump.dump.bitmaps import bitmap, to_frames
from kjump.dump.classes import PageFields, doubts
from kjump.dump.kernel import KernelLayout
from kjump.dump.selection import select_level
from kjump.formats import vmcoreinfo
from kjump.memory import BytesMemory

LONGEST = 4096
_LOG = foreign.log([b"hello", b"Kernel panic - not syncing: no"], tinykernel.linear(tinykernel.LOG))


def _memory(model: str) -> BytesMemory:
    data = bytearray(tinykernel.memory(model))
    start = tinykernel.LOG * foreign.PAGE
    data[start : start + len(_LOG[0])] = _LOG[0]
    return BytesMemory(bytes(data))


MEMORIES = [_memory(model) for model in ("sparse", "static", "flat")]
INPUTS = [(tinykernel.info(model) + _LOG[1]).encode() for model in ("sparse", "static", "flat")]


def one_input(data: bytes) -> None:
    """Read `data` as the VMCOREINFO of each of three small kernels."""
    info = vmcoreinfo.parse(data)
    with clean_errors():
        _ = (info.kernel_offset, info.crash_time, info.build_id, info.page_size)
    with clean_errors():
        doubts(info)
        PageFields.of(info, 8)
    with clean_errors():
        PageFields.of(info, 4)
    for memory in MEMORIES:
        with clean_errors():
            layout = KernelLayout(memory, info)
            with clean_errors():
                select_level(layout, bitmap(to_frames(memory.ranges)), 31)
            for record in dmesg.records(layout):
                assert "\x1b" not in str(record)
