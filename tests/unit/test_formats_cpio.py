from __future__ import annotations

import os
import shutil
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import damaged, survives

from kjump.errors import FormatError
from kjump.formats import cpio
from kjump.formats.cpio import Entry

names = st.from_regex(r"[a-z]{1,6}", fullmatch=True)
numbers = st.integers(0, 2**32 - 1)
files = st.builds(
    Entry,
    names,
    st.integers(0, 0o7777).map(lambda mode: mode | stat.S_IFREG),
    st.binary(max_size=40),
    numbers,
    numbers,
    numbers,
)
TREE = [
    cpio.regular("init", b"#!/bin/sh\n", 0o755),
    cpio.regular("usr/lib/python/a.py", b"pass"),
    cpio.directory("usr/lib", 0o700),
    cpio.symlink("lib", "usr/lib"),
    cpio.char_device("dev/console", 5, 1),
]
SAMPLE = cpio.write(TREE)


@given(st.lists(files, max_size=6, unique_by=lambda entry: entry.name))
def test_what_is_written_is_read_back(entries: list[Entry]) -> None:
    archive = cpio.write(entries)
    assert list(cpio.iterate(archive)) == entries
    assert len(archive) % 512 == 0


@given(st.lists(files, min_size=1, max_size=6, unique_by=lambda entry: entry.name), st.data())
def test_an_entry_is_taken_out_wherever_it_lies(entries: list[Entry], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(entries))
    archives = cpio.join([cpio.write([cpio.directory("0")]), cpio.write(entries)])
    assert list(cpio.iterate(cpio.without(archives, gone.name)))[1:] == [e for e in entries if e != gone]
    assert cpio.without(archives, "nowhere") == archives


def test_parents_are_added_once_and_come_first() -> None:
    entries = list(cpio.iterate(SAMPLE))
    assert [e.name for e in entries] == [
        *("init", "usr", "usr/lib", "usr/lib/python", "usr/lib/python/a.py", "lib", "dev", "dev/console")
    ]
    assert entries[2].mode == stat.S_IFDIR | 0o700
    assert entries[-1].rdev == (5, 1)
    assert entries[5].data == b"usr/lib"


def test_an_archive_is_reproducible_and_can_be_written_again() -> None:
    assert cpio.write(cpio.iterate(SAMPLE)) == cpio.write(TREE) == SAMPLE


def test_names_are_taken_relative_to_the_root() -> None:
    archive = cpio.write([cpio.directory("."), cpio.regular("/etc/a", b""), cpio.regular("./etc//b", b"")])
    assert [e.name for e in cpio.iterate(archive)] == [".", "etc", "etc/a", "etc/b"]


@given(st.lists(st.lists(files, max_size=2, unique_by=lambda e: e.name), max_size=4), st.sampled_from([4, 512]))
def test_several_archives_in_one(groups: list[list[Entry]], align: int) -> None:
    joined = cpio.join([cpio.write(group, align=4) for group in groups], align=align)
    assert list(cpio.iterate(joined)) == [entry for group in groups for entry in group]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (cpio.regular("", b""), "named"),
        (cpio.regular("a/../b", b""), "named"),
        (cpio.regular("TRAILER!!!", b""), "named"),
        (cpio.regular("a" * 4096, b""), "named"),
        (cpio.symlink("a", ""), "target of 0 bytes"),
        (replace(cpio.regular("a", b""), mtime=2**32), "32 bits"),
        (replace(cpio.regular("a", b""), uid=-1), "32 bits"),
    ],
)
def test_what_cannot_be_written(entry: Entry, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        cpio.write([entry])


def test_what_cannot_stand_together() -> None:
    with pytest.raises(FormatError, match="a comes twice"):
        cpio.write([cpio.regular("a", b""), cpio.directory("/a")])
    with pytest.raises(FormatError, match="no directory"):
        cpio.write([cpio.symlink("lib", "usr/lib"), cpio.regular("lib/a", b"")])
    with pytest.raises(FormatError, match="multiple of 4"):
        cpio.join([SAMPLE], align=2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x1f\x8b" + bytes(200), "compressed"),
        (SAMPLE[:50], "cut off"),
        (SAMPLE[: SAMPLE.index(b"TRAILER") - 110], "without its trailer"),
        (SAMPLE[: SAMPLE.index(b"TRAILER") - 20], "cut off"),
        (SAMPLE.rstrip(b"\0") + bytes(5) + SAMPLE, "multiple of 4"),
        (SAMPLE[:6] + b"x" + SAMPLE[7:], "other things than digits"),
    ],
)
def test_what_is_refused_and_why(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        list(cpio.iterate(data))


@given(damaged(SAMPLE))
def test_damaged(data: bytes) -> None:
    survives(lambda damage: list(cpio.iterate(damage)), data)


needs_cpio = pytest.mark.skipif(not shutil.which("cpio"), reason="no cpio: install the package cpio to run this")


@needs_cpio
def test_cpio_unpacks_what_we_write(tmp_path: Path) -> None:
    tree = [entry for entry in TREE if not stat.S_ISCHR(entry.mode)]
    subprocess.run(["cpio", "-idm", "--quiet"], input=cpio.write(tree), cwd=tmp_path, check=True)
    assert (tmp_path / "lib/python/a.py").read_bytes() == b"pass"
    assert (tmp_path / "lib").readlink() == Path("usr/lib")
    assert stat.S_IMODE((tmp_path / "init").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "usr/lib").stat().st_mode) == 0o700


@needs_cpio
def test_cpio_lists_what_we_write() -> None:
    done = subprocess.run(["cpio", "-itv", "--quiet"], input=SAMPLE, capture_output=True, check=True)
    lines = [line.split() for line in done.stdout.decode().splitlines()]
    links = {line[-1]: int(line[1]) for line in lines if line[0].startswith("d")}
    assert links == {"usr": 3, "usr/lib": 3, "usr/lib/python": 2, "dev": 2}
    assert any(line[0] == "crw-------" and line[4:6] == ["5,", "1"] for line in lines)


@needs_cpio
@pytest.mark.parametrize("kind", ["newc", "crc"])
def test_we_read_what_cpio_writes(tmp_path: Path, kind: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").write_bytes(b"contents \xff")
    (tmp_path / "link").symlink_to("d/file")
    os.utime(tmp_path / "d/file", (1000, 1000))
    done = subprocess.run(
        ["cpio", "-o", "--quiet", "-H", kind],
        input=b".\nd\nd/file\nlink\n",
        cwd=tmp_path,
        capture_output=True,
    )
    found = {entry.name: entry for entry in cpio.iterate(done.stdout)}
    assert list(found) == [".", "d", "d/file", "link"]
    assert (found["d/file"].data, found["d/file"].mtime) == (b"contents \xff", 1000)
    assert found["link"].data == b"d/file"
    damage = done.stdout.replace(b"contents", b"c0ntents")
    if kind == "crc":
        with pytest.raises(FormatError, match="checksum"):
            list(cpio.iterate(damage))
