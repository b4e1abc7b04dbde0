"""Dumps that other people's kernels and programs wrote, as `kjump dump` sees them: odd, foreign, cut short."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import foreign
import pytest
import tinykernel
from foreign import PAGE, PAGES, Load, elf64, flat, kdump, note, vmcoreinfo

from kjump import cli

MIB = 1 << 20
REGISTERS = note("CORE", 1, bytes(336))
PLAIN_INFO = "OSRELEASE=6.12.0\nPAGESIZE=4096\n"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def kjump(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `kjump dump`: (exit status, output, errors). What is no clean error is raised."""

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
    text = tinykernel.info(model) + log_info
    for entry in entries(text):
        for value in NUMBERS:
            changed = "".join(f"{entry}={value}\n" if e == entry else f"{e}={v}\n" for e, v in pairs(text))
            source = written(tmp_path / "core", elf64([Load(0, bytes(memory))], vmcoreinfo(changed)))
            told = info(kjump, source)
            assert told["pages"] == tinykernel.FRAMES
            for words in (("dmesg", source), ("write", source, tmp_path / "out", "--force", "--format", "kdump")):
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


# --- cut short ----------------------------------------------------------------------------------------------

CORE = elf64([Load(PAGE, b"".join(PAGES.values()))], vmcoreinfo(PLAIN_INFO))


def image(kjump: Run, tmp_path: Path) -> bytes:
    """Return a kjump image of the eight pages and 600 more, in several frames."""
    more = b"".join(bytes([i % 251]) * PAGE for i in range(608))
    source = written(tmp_path / "source", elf64([Load(PAGE, more)], vmcoreinfo(PLAIN_INFO)))
    assert kjump("convert", source, tmp_path / "image", "--force")[0] == 0
    return (tmp_path / "image").read_bytes()


@pytest.mark.parametrize("kind", ["core", "kdump", "flattened core", "flattened kdump"])
@pytest.mark.parametrize("cut", [1, 9, 17, 2000, PAGE, 9000, 5 * PAGE + 3])
def test_a_file_that_was_cut_short_reads_as_far_as_it_goes(kjump: Run, tmp_path: Path, kind: str, cut: int) -> None:
    data = CORE if "core" in kind else kdump(PAGES)
    source = written(tmp_path / "cut", (flat(data) if "flattened" in kind else data)[:-cut])
    told = info(kjump, source)
    pages = contents(kjump, source)
    assert not told["complete"] and told["warnings"]
    assert pages.items() <= PAGES.items()
    assert 8 - cut // PAGE - 2 <= len(pages) <= 8 - (cut - 17) // PAGE
    assert told["pages"] == 8 and told["classes"].get("missing", 0) == 8 - len(pages)
    status, _, err = kjump("write", source, tmp_path / "out", "--level", 0, "--force")
    assert status == 0 and f" {len(pages)} of 8 pages" in err and "cut short" in err and "%" not in err


def test_everything_that_can_be_cut_off_is_named_or_refused(kjump: Run, tmp_path: Path) -> None:
    for data in (CORE, kdump(PAGES), flat(CORE), flat(kdump(PAGES, notes=REGISTERS))):
        for size in [*range(0, 5000, 97), *range(5000, len(data), 1999)]:
            source = written(tmp_path / "cut", data[:size])
            status, out, err = kjump("info", source, "--json")
            assert (status == 0 and not json.loads(out)["complete"]) or (status == 1 and err.count("\n") == 1)
            assert "%" not in err


@pytest.mark.parametrize("cut", [1, 8, 30, 200, 500])
def test_an_image_without_its_seek_table(kjump: Run, tmp_path: Path, cut: int) -> None:
    whole = contents(kjump, written(tmp_path / "whole", image(kjump, tmp_path)))
    source = written(tmp_path / "cut", image(kjump, tmp_path)[:-cut])
    pages = contents(kjump, source)
    told = info(kjump, source)
    assert pages.items() <= whole.items() and len(pages) >= 96
    assert not told["complete"] and any("seek table" in text for text in told["warnings"])
    assert told["classes"].get("missing", 0) == len(whole) - len(pages)


def test_what_is_converted_from_an_incomplete_dump_says_so_itself(kjump: Run, tmp_path: Path) -> None:
    source = written(tmp_path / "cut", kdump(PAGES)[: -2 * PAGE])
    assert kjump("convert", source, tmp_path / "again", "--format", "kdump")[0] == 0
    assert not info(kjump, tmp_path / "again")["complete"]
    assert kjump("convert", source, tmp_path / "image")[0] == 0
    assert not info(kjump, tmp_path / "image")["complete"]


# --- foreign, and in part -----------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", [b"aarch64", b"riscv64", b"loongarch64", b"s390x", b"ppc64le"])
def test_a_kdump_file_of_another_machine(kjump: Run, tmp_path: Path, machine: bytes) -> None:
    source = written(tmp_path / "kdump", kdump(PAGES, machine=machine, info=PLAIN_INFO.encode()))
    assert machine.decode() in refused(kjump, source)


def test_a_core_of_a_process(kjump: Run, tmp_path: Path) -> None:
    loads = [Load(0, b"\x7fELF" + bytes(PAGE - 4), vaddr=0x400000), Load(0, b"\1" * 3 * PAGE, vaddr=0x7FFF00000000)]
    for kinds in ((1, 3, 6), (1, 6), (1, 0x46494C45), (1, 3, 0x53494749)):
        notes = b"".join(note("CORE", kind, bytes(136)) for kind in kinds)
        assert "core of a process" in refused(kjump, written(tmp_path / "core", elf64(loads, notes)))


@pytest.mark.parametrize("notes", [b"", REGISTERS])
def test_a_core_without_physical_addresses(kjump: Run, tmp_path: Path, notes: bytes) -> None:
    loads = [Load(0, b"\xaa" * 0x4000, vaddr=0xFFFF888000001000), Load(0, b"\xbb" * 0x2000, vaddr=0xFFFFFFFF81000000)]
    for some in (loads, loads[:1]):
        assert "no physical addresses" in refused(kjump, written(tmp_path / "core", elf64(some, notes)))


def test_a_file_without_memory(kjump: Run, tmp_path: Path) -> None:
    for data in (elf64([]), elf64([Load(PAGE, b"", memsz=PAGE)], REGISTERS)):
        assert "there is no memory in it" in refused(kjump, written(tmp_path / "core", data))
    assert "before its first page" in refused(kjump, written(tmp_path / "cut", CORE[: PAGE + 100]))


def test_a_core_without_notes_is_complete(kjump: Run, tmp_path: Path) -> None:
    found = info(kjump, written(tmp_path / "core", elf64([Load(PAGE, b"".join(PAGES.values()))])))
    assert found["complete"] and not found["warnings"]


def test_what_is_not_known_is_called_unknown(kjump: Run, tmp_path: Path) -> None:
    source = written(tmp_path / "core", elf64([Load(PAGE, b"x" * PAGE)]))
    out = kjump("info", source)[1]
    for name in ("kernel", "CPUs", "KASLR offset"):
        assert f"{name:14}unknown\n" in out
    found = info(kjump, written(tmp_path / "kdump", kdump(PAGES, machine=b"")))
    assert (found["machine"], found["cpus"], found["kernel_offset"]) == (None, None, None)


def split_set(tmp_path: Path, borders: tuple[int, ...] = (0, 4, 7, 9)) -> list[Path]:
    parts = pairwise(borders)
    return [written(tmp_path / f"part{a}", kdump(PAGES, split=(a, b))) for a, b in parts]


def test_one_part_of_a_split_dump_is_not_the_whole(kjump: Run, tmp_path: Path) -> None:
    part = split_set(tmp_path)[1]
    told = info(kjump, part)
    assert not told["complete"] and any("one part of a split dump" in text for text in told["warnings"])
    assert (told["pages"], told["classes"]["missing"]) == (8, 5)
    assert contents(kjump, part) == {frame: PAGES[frame] for frame in (4, 5, 6)}


def test_the_parts_of_a_split_dump_are_read_as_one(kjump: Run, tmp_path: Path) -> None:
    parts = split_set(tmp_path)
    told = info(kjump, *parts)
    assert told["complete"] and told["pages"] == 8 and not told["warnings"]
    assert contents(kjump, *parts[::-1]) == PAGES
    assert contents(kjump, parts[0], parts[2]).keys() == {1, 2, 3, 7, 8}
    told = info(kjump, *parts[:2])
    assert not told["complete"] and told["classes"]["missing"] == 2
    kjump("convert", *parts, tmp_path / "whole", "--format", "kdump")
    assert contents(kjump, tmp_path / "whole") == PAGES


def test_what_does_not_belong_together(kjump: Run, tmp_path: Path) -> None:
    parts = split_set(tmp_path)
    other = written(tmp_path / "other", kdump(dict(list(PAGES.items())[:5]), split=(4, 7)))
    whole = written(tmp_path / "whole", kdump(PAGES))
    for paths, words in (
        ((parts[0], parts[0]), "given twice"),
        ((parts[0], other), "not of one split dump"),
        ((parts[0], whole), "is no part of a split dump"),
    ):
        status, _, err = kjump("info", *paths)
        assert status == 1 and words in err
    status, _, err = kjump("write", *parts, "--force")
    assert status == 2 and "say where to write" in err and all(part.exists() for part in parts)


def test_a_split_dump_of_our_own_is_joined_again(kjump: Run, tmp_path: Path) -> None:
    source = tiny(tmp_path / "core")
    parts = [tmp_path / f"part{i}" for i in range(3)]
    assert kjump("write", source, *parts, "--format", "kdump", "--level", 16)[0] == 0
    assert kjump("write", source, tmp_path / "one", "--format", "kdump", "--level", 16)[0] == 0
    assert contents(kjump, *parts) == contents(kjump, tmp_path / "one")
    assert info(kjump, *parts)["classes"] == info(kjump, tmp_path / "one")["classes"]


# --- counts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 8])
def test_pages_with_descriptors_of_zeros_are_lost(kjump: Run, tmp_path: Path, status: int) -> None:
    source = written(tmp_path / "kdump", kdump(PAGES, lost=(2, 4, 5, 7, 8), status=status))
    told = info(kjump, source)
    assert not told["complete"] and (told["pages"], told["classes"]["missing"]) == (8, 5)
    assert contents(kjump, source) == {frame: PAGES[frame] for frame in (1, 3, 6)}
    assert "3 of 8 pages" in kjump("write", source, tmp_path / "out", "--level", 0)[2]


def test_a_page_that_is_there_in_part_is_kept(kjump: Run, tmp_path: Path) -> None:
    loads = [Load(PAGE, b"\1" * 0x1800), Load(0x3400, b"\3" * 0x200), Load(0x3A00, b"\4" * 0x600)]
    source = written(tmp_path / "core", elf64(loads, vmcoreinfo(PLAIN_INFO)))
    pages = contents(kjump, source)
    assert pages[2] == b"\1" * 0x800 + bytes(0x800)
    assert pages[3] == bytes(0x400) + b"\3" * 0x200 + bytes(0x400) + b"\4" * 0x600
    told = info(kjump, source)
    assert told["complete"] and any("2 pages are in the file in part" in text for text in told["warnings"])


@pytest.mark.parametrize("order", [11, 20, 21, 63, 1 << 40])
def test_a_free_page_of_nonsense_order_is_kept(kjump: Run, tmp_path: Path, order: int) -> None:
    memory = bytearray(tinykernel.memory())
    at = tinykernel.MAP * PAGE + 8 * tinykernel.STRIDE
    memory[at : at + tinykernel.STRIDE] = tinykernel.page_struct(private=order, kind=tinykernel.BUDDY)
    source = written(tmp_path / "core", elf64([Load(0, bytes(memory))], vmcoreinfo(tinykernel.info())))
    assert info(kjump, source)["classes"] == info(kjump, tiny(tmp_path / "good"))["classes"]


def test_the_log_cannot_command_a_terminal(kjump: Run, tmp_path: Path) -> None:
    bad = b"\x1b]0;owned\x07\x9b31m \xc2\x9b31m \xe2\x80\xaetxt \ttab"
    memory, text = foreign.tiny_with_log([b"fine", b"Kernel panic - not syncing: " + bad, b"two\nlines \xc3\xa9"])
    text += "NUMBER(x)=\x1b[31m\n"
    source = written(tmp_path / "core", elf64([Load(0, memory)], vmcoreinfo(text)))
    for words in (("dmesg", source), ("info", source), ("info", source, "--vmcoreinfo")):
        status, out, _ = kjump(*words)
        assert status == 0 and all(c.isprintable() or c in "\n\t" for c in out)
    out = kjump("dmesg", source)[1]
    assert "\\x1b]0;owned\\x07" in out and "\\u202etxt \ttab" in out
    assert out.endswith("two\n[    2.000000] lines \N{LATIN SMALL LETTER E WITH ACUTE}\n")
    lines = json.loads(kjump("dmesg", source, "--json")[1])["records"]
    assert lines[1]["text"].startswith("Kernel panic - not syncing: \x1b]0;owned")


# --- what to do -------------------------------------------------------------------------------------------------


def test_a_dump_of_qemu_without_vmcoreinfo(kjump: Run, tmp_path: Path) -> None:
    source = written(tmp_path / "core", elf64([Load(0, bytes(PAGE))], REGISTERS + note("QEMU", 0, bytes(440))))
    assert "-device vmcoreinfo" in kjump("write", source, tmp_path / "out")[2]


def test_an_i386_kernel_without_pae(kjump: Run, tmp_path: Path) -> None:
    text = PLAIN_INFO + "SYMBOL(swapper_pg_dir)=c1a00000\nSYMBOL(mem_map)=c1b00000\n"
    source = written(tmp_path / "core", elf64([Load(0, bytes(PAGE))], vmcoreinfo(text), machine=3))
    assert "without PAE" in kjump("write", source, tmp_path / "out")[2]


def test_a_kernel_from_before_4_13(kjump: Run, tmp_path: Path) -> None:
    source = tiny(tmp_path / "core", lambda text: text.replace("init_top_pgt", "init_level4_pgt"))
    assert "before 4.13" in kjump("write", source, tmp_path / "out")[2]


def test_a_log_from_before_5_10(kjump: Run, tmp_path: Path) -> None:
    source = tiny(tmp_path / "core", lambda text: text + "SYMBOL(log_buf)=ffff888000005000\n")
    status, _, err = kjump("dmesg", source)
    assert status == 1 and "before 5.10" in err
