"""Dumps that other people's kernels and programs wrote: names, notes and numbers as nobody expects them."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import foreign
import pytest
import tinykernel
from dumpcli import PLAIN_INFO, Run, contents, dumped, info, runner, tiny, written
from foreign import PAGE, PAGES, Load, elf64, kdump, note, vmcoreinfo

MIB = 1 << 20
REGISTERS = note("CORE", 1, bytes(336))


@pytest.fixture
def kjump(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


# --- names that kernels change ------------------------------------------------------------------------------


def test_the_new_name_of_compound_head(kjump: Run, tmp_path: Path) -> None:
    old = info(kjump, tiny(tmp_path / "old"))
    new = info(kjump, tiny(tmp_path / "new", lambda t: t.replace("page.compound_head", "page.compound_info")))
    assert new["classes"] == old["classes"] and not new["warnings"]


@pytest.mark.parametrize(
    ("entry", "classes"),
    [
        ("OFFSET(page.compound_head)", ["user"]),
        ("NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)", ["user"]),
        ("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)", ["free"]),
        ("NUMBER(PG_lru)", ["page cache", "page cache, private"]),
        ("NUMBER(PG_private)", ["page cache", "page cache, private"]),
        ("NUMBER(PG_swapcache)", []),
        ("NUMBER(PG_swapbacked)", []),
        ("NUMBER(PG_head_mask)", []),
        ("NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)", []),
    ],
)
def test_a_name_that_is_gone_keeps_the_pages_and_says_so(
    kjump: Run, tmp_path: Path, entry: str, classes: list[str]
) -> None:
    whole = dumped(kjump, tiny(tmp_path / "whole"))
    source = tiny(tmp_path / "lacks", lambda text: text.replace(entry, "NUMBER(nothing)"))
    found = dumped(kjump, source)
    assert any(entry in text for text in found["warnings"]) and not whole["warnings"]
    # Pages of zeros are taken out of what is left: without them and with them nothing more may go.
    assert found["kept_pages"] + found["zero_pages"] >= whole["kept_pages"] + whole["zero_pages"]
    assert all(info(kjump, source)["classes"][name] == 0 for name in classes)
    assert any(entry in line for line in kjump("write", source, tmp_path / "said")[2].splitlines())


# --- notes --------------------------------------------------------------------------------------------------

GARBAGE = struct.pack("<3I", 5, 0x41414141, 1) + b"CORE\0\0\0\0" + bytes(336)
TINY = vmcoreinfo(tinykernel.info())
ODD_NOTES = {
    "garbage behind": (TINY + REGISTERS + GARBAGE, 0),
    "garbage before": (REGISTERS + GARBAGE + TINY, 0),
    "not even aligned": (REGISTERS + b"\xff" * 333 + b"\0\0\0" + TINY, 0),
    "a size that swallows": (struct.pack("<3I", 5, 1500, 1) + b"CORE\0\0\0\0" + bytes(64) + TINY, 0),
    "device dumps": (note("LINUX", 0x700, b"vmcoredd".ljust(52, b"\0") + bytes(40 * MIB)) * 2 + TINY, 0),
    "one device dump": (TINY + note("LINUX", 0x700, bytes(70 * MIB)), 0),
    "aligned to 8": (note("CORE", 1, bytes(335), 8) + note("VMCOREINFO", 0, tinykernel.info().encode(), 8), 8),
    "aligned to 8, unsaid": (note("CORE", 1, bytes(335), 8) + note("VMCOREINFO", 0, tinykernel.info().encode(), 8), 4),
    "stray bytes": (TINY + b"\0\0\0\1", 0),
    "a name of letters": (note("caf\N{LATIN SMALL LETTER E WITH ACUTE}", 1, bytes(20)) + TINY, 0),
    "zeros before": (bytes(12) + TINY, 0),
}


@pytest.mark.parametrize("kind", ODD_NOTES)
def test_odd_notes_do_no_harm(kjump: Run, tmp_path: Path, kind: str) -> None:
    notes, align = ODD_NOTES[kind]
    memory = tinykernel.memory()
    source = written(tmp_path / "odd.elf", elf64([Load(0, memory)], notes, note_align=align))
    assert b"".join(contents(kjump, source).values()) == memory
    assert dumped(kjump, source, 0)["kept_pages"] == dumped(kjump, tiny(tmp_path / "good"), 0)["kept_pages"]
    assert info(kjump, source)["release"] == "6.12.0-tiny"
    kept = kdump(PAGES, info=PLAIN_INFO.encode(), notes=notes[-PAGE // 2 :])
    assert contents(kjump, written(tmp_path / "odd.kd", kept)) == PAGES


@pytest.mark.parametrize("form", ["elf", "kdump", "flattened", "image"])
def test_device_dumps_are_kept(kjump: Run, tmp_path: Path, form: str) -> None:
    device = note("LINUX", 0x700, b"vmcoredd".ljust(52, b"\0") + bytes(range(256)) * (5 * MIB // 256 + 1) + b"x")
    source = tiny(tmp_path / "core", notes=device + REGISTERS + note("LINUX", 0x700, bytes(3 * MIB)))
    assert kjump("convert", source, tmp_path / "made", "--format", form)[0] == 0
    pages = contents(kjump, tmp_path / "made")
    assert b"".join(pages.values()) == tinykernel.memory()
    data = (tmp_path / "made.core").read_bytes()
    offset, size = struct.unpack_from("<Q", data, 64 + 8)[0], struct.unpack_from("<Q", data, 64 + 32)[0]
    assert data[offset : offset + size].count(device) == 1
    told = info(kjump, tmp_path / "made")
    assert told["cpus"] == 1 and told["release"] == "6.12.0-tiny" and not told["warnings"]


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("text", [b"OSRELEASE=6.12\xff\n", b"PAGESIZE=\n", b"", b"\xff" * 300])
def test_a_level_without_classes_needs_no_vmcoreinfo(kjump: Run, tmp_path: Path, text: bytes, level: int) -> None:
    for name, data in (
        ("core", elf64([Load(PAGE, b"".join(PAGES.values()))], vmcoreinfo(text))),
        ("kdump", kdump(PAGES, info=text)),
    ):
        source = written(tmp_path / name, data)
        assert dumped(kjump, source, level)["kept_pages"] == 8
        assert contents(kjump, source) == PAGES
        status, _, err = kjump("write", source, tmp_path / "not")
        assert status == 1 and "`kjump dump convert` keep all pages" in err


# --- numbers ------------------------------------------------------------------------------------------------

NUMBERS = ["-1", "0", "1", "63", "65", "100000", "4294967295", "18446744073709551615", "9" * 30, "x"]


def entries(text: str) -> list[str]:
    return [line.partition("=")[0] for line in text.splitlines()]


@pytest.mark.parametrize("model", ["sparse", "static", "flat"])
def test_impossible_numbers_end_in_a_sentence(kjump: Run, tmp_path: Path, model: str) -> None:
    """Each number of VMCOREINFO is made impossible in turn: no traceback, no dump without the kernel's own pages."""
    memory = bytearray(tinykernel.memory(model))
    ring, log_info = foreign.log([b"hello"], tinykernel.linear(tinykernel.LOG))
    memory[tinykernel.LOG * PAGE : tinykernel.LOG * PAGE + len(ring)] = ring
    load = Load(0, bytes(memory[: 64 * PAGE]))  # the kernel's own, and a few that it has page structs for
    text = tinykernel.info(model) + log_info
    for entry in entries(text):
        for value in NUMBERS:
            changed = "".join(f"{entry}={value}\n" if e == entry else f"{e}={v}\n" for e, v in pairs(text))
            source = written(tmp_path / "core", elf64([load], vmcoreinfo(changed)))
            told = info(kjump, source)
            assert told["pages"] == 64
            for words in (("dmesg", source), ("write", source, "/dev/null", "--format", "flattened")):
                status, _, err = kjump(*words, "--json")
                assert status == 0 or (status == 1 and err.count("\n") == 1), (entry, value, err)
            assert told["trouble"] or told["classes"]["kernel"] > 8, (entry, value)


def pairs(text: str) -> list[tuple[str, str]]:
    return [(key, value) for key, _, value in (line.partition("=") for line in text.splitlines())]


HUGE = {
    "memory that was left out": elf64([Load(PAGE, b"x" * 5 * PAGE, memsz=1 << 45)], vmcoreinfo(PLAIN_INFO)),
    "memory far away": elf64([Load(PAGE, b"x" * 4 * PAGE), Load(1 << 47, b"y" * PAGE)], vmcoreinfo(PLAIN_INFO)),
    "bitmaps of a flattened file": foreign.flat(kdump(PAGES))[:PAGE]
    + b"".join(
        struct.pack(">qq", at, len(data)) + data
        for at, data in (
            (0, kdump(PAGES)[:432] + struct.pack("<iI", 1, 0x7FFFFFFE) + kdump(PAGES)[440 : 2 * PAGE]),
            (1 << 44, b"end"),
        )
    )
    + struct.pack(">qq", -1, -1),
    "a flattened core": foreign.flat(b"")[:PAGE]
    + b"".join(
        struct.pack(">qq", at, len(data)) + data
        for at, data in (
            (0, elf64([Load(0, b"")])[:120]),
            (120, struct.pack("<IIQQQQQQ", 1, 7, PAGE, 0, 0, 1 << 36, 1 << 36, 0)),
            (1 << 40, b"end"),
        )
    )
    + struct.pack(">qq", -1, -1),
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_small_file_takes_little_memory(tmp_path: Path, kind: str) -> None:
    source = written(tmp_path / "small", HUGE[kind])
    assert source.stat().st_size < 32 << 10
    program = (
        "import pathlib, resource, sys; from kjump.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (60, 60))\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(*(l for l in pathlib.Path('/proc/self/status').open() if 'VmHWM' in l), file=sys.stderr)"
    )
    for words in (["info"], ["write", "--level", "0"], ["convert", "--format", "kdump"]):
        out = [] if words == ["info"] else [str(tmp_path / "out"), "--force"]
        command = [sys.executable, "-c", program, "dump", *words, str(source), *out]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
        assert int(done.stderr.split()[-2]) < 300 << 10  # KiB
