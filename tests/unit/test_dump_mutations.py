"""Two thousand damaged dumps: each is a clean error or a result, never a traceback, never much memory."""

from __future__ import annotations

import contextlib
import os
import random
import resource
from pathlib import Path

import pytest
import tinykernel

from kjump.dump import dmesg
from kjump.dump.create import Format, Request, dump
from kjump.dump.opening import open_source
from kjump.dump.summary import summarize
from kjump.errors import KjumpError
from kjump.formats.kdump import Method

ROUNDS = 500
MOST_MEMORY_KIB = 400 << 10

KINDS = {
    "elf": (Format.ELF, False, Method.NONE),
    "kdump": (Format.KDUMP, False, Method.ZLIB),
    "flattened": (Format.KDUMP, True, Method.LZO),
    "image": (Format.IMAGE, False, Method.ZSTD),
}


def mutated(original: bytes, chance: random.Random) -> bytes:
    """Damage a file: mostly bytes of its headers, sometimes anywhere, cut short, or with a piece moved."""
    data = bytearray(original)
    kind = chance.randrange(10)
    if kind == 0:
        return bytes(data[: chance.randrange(len(data))])
    if kind == 1:
        at, size = chance.randrange(len(data)), chance.randrange(1, 5000)
        del data[at : at + size]
        return bytes(data)
    area = len(data) if kind == 2 else min(len(data), chance.choice((64, 512, 4700, 16384)))
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        at = chance.randrange(area)
        value = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        size = chance.choice((1, 1, 4, 8))
        data[at : at + size] = bytes([value]) * min(size, len(data) - at)
    return bytes(data)


def use(path: Path, out: Path) -> None:
    """Do all that can be done with a dump."""
    with open_source(path) as source:
        summarize(source, zeros=True, threads=1)
        with contextlib.suppress(KjumpError):
            list(dmesg.records(source.layout))
        for form in (Format.KDUMP, Format.ELF):
            dump(
                source,
                Request(
                    (str(out),),
                    level=31,
                    format=form,
                    method=Method.NONE if form is Format.ELF else Method.ZSTD,
                    force=True,
                ),
            )


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_dumps(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    vmcore, good, bad, out = (tmp_path / name for name in ("vmcore", "good", "bad", "out"))
    tinykernel.write_vmcore(vmcore)
    form, flat, method = KINDS[kind]
    with open_source(vmcore) as source:
        dump(source, Request((str(good),), level=0, format=form, flattened=flat, method=method))
    original = good.read_bytes()
    refused = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(ROUNDS):
        bad.write_bytes(mutated(original, random.Random(f"{kind} {seed}")))
        try:
            use(bad, out)
        except KjumpError as error:
            refused += 1
            assert str(error) and "\n" not in str(error)
    # An image has checksums over all of it, so no damage goes unnoticed there.
    assert 0 < refused < ROUNDS or (kind == "image" and refused == ROUNDS)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY_KIB
