"""The fuzzing targets, without the fuzzer: their seeds, and a few hundred damaged ones each."""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parents[2] / "fuzz"
TARGETS = ("vmcoreinfo", "dumps", "notes", "images", "superblock", "cmdline")


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_what_comes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(FUZZ), *sys.path])
    target = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)
    chance = random.Random(name)
    for seed in target.INPUTS:
        target.one_input(seed)
    for _ in range(200):
        data = bytearray(chance.choice(target.INPUTS)) + chance.randbytes(4 * chance.randrange(4))
        for _ in range(chance.randrange(3) if data else 0):
            data[chance.randrange(len(data))] = chance.randrange(256)
        target.one_input(bytes(data))
