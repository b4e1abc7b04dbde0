"""Dumps that are not all there, or not of what they seem to be: cut short, split, of other machines, of processes."""

from __future__ import annotations

import json
import os
import threading
from itertools import pairwise
from pathlib import Path

import foreign
import pytest
import tinykernel
from dumpcli import PLAIN_INFO, Run, contents, core_pages, info, refused, runner, tiny, written
from foreign import PAGE, PAGES, Load, elf64, flat, kdump, note, vmcoreinfo

from kjump.formats.superblock import State, Superblock

MIB = 1 << 20
REGISTERS = note("CORE", 1, bytes(336))


@pytest.fixture
def kjump(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


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
    assert status == 0 and f" {len(pages)} of 8 pages" in err and "cut short" in err and "%#" not in err


def test_everything_that_can_be_cut_off_is_named_or_refused(kjump: Run, tmp_path: Path) -> None:
    for data in (CORE, kdump(PAGES), flat(CORE), flat(kdump(PAGES, notes=REGISTERS))):
        for size in [*range(0, 5000, 97), *range(5000, len(data), 1999)]:
            source = written(tmp_path / "cut", data[:size])
            status, out, err = kjump("info", source, "--json")
            assert (status == 0 and not json.loads(out)["complete"]) or (status == 1 and err.count("\n") == 1)
            assert "%#" not in err


@pytest.mark.parametrize("cut", [1, 8, 30, 200, 500])
def test_an_image_without_its_seek_table(kjump: Run, tmp_path: Path, cut: int) -> None:
    whole = contents(kjump, written(tmp_path / "whole", image(kjump, tmp_path)))
    source = written(tmp_path / "cut", image(kjump, tmp_path)[:-cut])
    pages = contents(kjump, source)
    told = info(kjump, source)
    assert pages.items() <= whole.items() and len(pages) >= 96
    assert not told["complete"] and any("seek table" in text for text in told["warnings"])
    assert told["classes"].get("missing", 0) == len(whole) - len(pages)


def test_a_target_that_was_copied_in_part(kjump: Run, tmp_path: Path) -> None:
    data = image(kjump, tmp_path)
    superblock = Superblock(
        state=State.DUMP, image_length=len(data), capacity=1 << 30, stream_length=1 << 22, seek_table_length=0
    )
    target = superblock.pack() + data
    assert info(kjump, written(tmp_path / "target", target))["complete"]
    told = info(kjump, written(tmp_path / "cut", target[:-300]))
    assert not told["complete"] and told["classes"]["missing"] < told["pages"]
    assert contents(kjump, tmp_path / "cut").items() <= contents(kjump, tmp_path / "image").items()


def test_parts_and_a_pipe(kjump: Run, tmp_path: Path) -> None:
    parts = split_set(tmp_path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(fifo.read_bytes()), daemon=True)
    reader.start()
    assert kjump("convert", *parts, fifo, "--format", "elf")[0] == 0
    reader.join(30)
    assert core_pages(found[0]) == PAGES


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
