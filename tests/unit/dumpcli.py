"""`kjump dump` as a test calls it: in this process, so that what is no clean error is raised."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tinykernel
from foreign import PAGE, Load, elf64, vmcoreinfo

from kjump import cli

PLAIN_INFO = "OSRELEASE=6.12.0\nPAGESIZE=4096\n"

Run = Callable[..., tuple[int, str, str]]


def runner(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return what runs `kjump dump` with some words: (exit status, output, errors)."""

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["dump", *map(str, words)])
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return run


def info(kjump: Run, *paths: object) -> dict[str, Any]:
    status, out, err = kjump("info", *paths, "--json")
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def refused(kjump: Run, *paths: object) -> str:
    """Return the one sentence with which both `info` and `convert` refuse a dump."""
    status, _, err = kjump("info", *paths)
    again, _, _ = kjump("convert", *paths, f"{paths[0]}.out")
    assert (status, again) == (1, 1) and err.count("\n") == 1
    return err


def contents(kjump: Run, *paths: object) -> dict[int, bytes]:
    """Return the pages that are in a dump, by frame number, as an ELF core made of it has them."""
    core = Path(f"{paths[0]}.core")
    status, _, err = kjump("convert", *paths, core, "--format", "elf", "--force")
    assert status == 0, err
    return core_pages(core.read_bytes())


def core_pages(data: bytes) -> dict[int, bytes]:
    pages = {}
    phoff, number = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<H", data, 56)[0]
    for at in range(phoff, phoff + 56 * number, 56):
        kind, _, offset, _, paddr, filesz, _, _ = struct.unpack_from("<IIQQQQQQ", data, at)
        for start in range(0, filesz if kind == 1 else 0, PAGE):
            pages[(paddr + start) // PAGE] = data[offset + start : offset + start + PAGE]
    return pages


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def tiny(path: Path, change: Callable[[str], str] = lambda text: text, notes: bytes = b"") -> Path:
    """Write a vmcore of the tiny kernel, its VMCOREINFO changed."""
    return written(path, elf64([Load(0, tinykernel.memory())], vmcoreinfo(change(tinykernel.info())) + notes))


def dumped(kjump: Run, source: Path, level: int = 31) -> dict[str, Any]:
    status, out, err = kjump("write", source, f"{source}.out", "--level", level, "--json", "--force")
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    return found
