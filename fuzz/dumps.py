"""Whole dumps: opened, summed up, filtered and written to nowhere, their log read."""

from __future__ import annotations

import os
import struct
import tempfile
from pathlib import Path

import foreign
import tinykernel
from harness import clean_errors, damaged, whole

from kjump import _core
from kjump.dump import dmesg
from kjump.dump.create import Format, Request, dump
from kjump.dump.opening import open_source
from kjump.dump.summary import summarize
from kjump.formats.kdump import Method
from kjump.formats.seekable import SeekTable

LONGEST = 2048
_MEMORY, _INFO = foreign.tiny_with_log([b"hello", b"Kernel panic - not syncing: no"])
_RUNS = ((tinykernel.ROOT, tinykernel.MAP + 8), (40, 48))
"""Frames of the small kernel that are in the seeds: all it takes to find out about it, and a few to select from."""


def _seeds() -> list[bytes]:
    page = foreign.PAGE
    loads = [foreign.Load(a * page, _MEMORY[a * page : b * page]) for a, b in _RUNS]
    notes = foreign.note("CORE", 1, bytes(336)) + foreign.vmcoreinfo(_INFO)
    core = foreign.elf64(loads, notes)
    pages = {i: _MEMORY[i * page : (i + 1) * page] for a, b in _RUNS for i in range(a, b)}
    kdump = foreign.kdump(pages, info=_INFO.encode(), notes=notes)
    part = foreign.kdump(pages, info=_INFO.encode(), split=(0, 20))
    return [core, kdump, part, foreign.flat(core), foreign.flat(kdump), _image(core), *map(_compressed, Method)]


def _compressed(method: Method) -> bytes:
    """Return a kdump file of our own, two pages of which are kept."""
    core = foreign.elf64([foreign.Load(0, bytes(foreign.PAGE) + b"page" * 1024)], foreign.vmcoreinfo("OSRELEASE=1\n"))
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "core"), Path(folder, "made")
        source.write_bytes(core)
        with open_source(source) as opened:
            dump(opened, Request((str(made),), level=1, format=Format.KDUMP, method=method))
        return made.read_bytes()


def _image(core: bytes) -> bytes:
    size = 1 << 15
    parts = [core[at : at + size] for at in range(0, len(core), size)]
    frames = [_core.compress_bytes(part) for part in parts]
    entries = (struct.pack("<II", len(f), len(p)) + f[-4:] for f, p in zip(frames, parts, strict=True))
    return b"".join(frames) + SeekTable(b"".join(entries)).encode()


SEEDS = _seeds()
INPUTS = whole(SEEDS)
_FILE = os.memfd_create("dump")
_REQUESTS = [
    Request(("/dev/null",), level=31, format=Format.KDUMP, flattened=True),
    Request(("/dev/null",), level=None, format=Format.ELF, method=Method.NONE),
]


def one_input(data: bytes) -> None:
    """Do all that can be done with the dump that `data` stands for."""
    os.ftruncate(_FILE, 0)
    os.pwrite(_FILE, damaged(SEEDS, data), 0)
    with clean_errors(), open_source(f"/proc/self/fd/{_FILE}") as source:
        with clean_errors():
            summarize(source, zeros=True, threads=1).as_json()
        with clean_errors():
            for record in dmesg.records(source.layout):
                assert "\x1b" not in str(record)
        for request in _REQUESTS:
            with clean_errors():
                dump(source, request)
