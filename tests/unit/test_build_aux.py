"""What installs packages, and what tries that in a minimal Debian."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kjump.lab.machine.kernel_make import TOOLS

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / "build-aux"))

import clean_room  # type: ignore[import-not-found]  # noqa: E402

_DPKG_QUERY = """#!/bin/sh
for name; do :; done
case " $INSTALLED " in *" $name "*) echo installed;; *) exit 1;; esac
"""
_APT_CACHE = """#!/bin/sh
for name in $KNOWN; do case $name in "$2"*) echo $name;; esac; done
"""
_APT_GET = """#!/bin/sh
echo "$@" >> "$LOG"
"""


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Debian of three scripts: what is INSTALLED, what is KNOWN; returns the log of apt-get's arguments."""
    for name, text in (("dpkg-query", _DPKG_QUERY), ("apt-cache", _APT_CACHE), ("apt-get", _APT_GET)):
        script = tmp_path / name
        script.write_text(text)
        script.chmod(0o755)
    sudo = tmp_path / "sudo"
    sudo.write_text('#!/bin/sh\nexec "$@"\n')
    sudo.chmod(0o755)
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(log))
    return log


def install(installed: str, known: str, *names: str) -> subprocess.CompletedProcess[str]:
    command = [str(TOP / "build-aux/packages.sh"), *names]
    environment = os.environ | {"INSTALLED": installed, "KNOWN": known}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_only_exact_names_that_the_release_has_are_installed(debian: Path) -> None:
    known = "gcc gcc-12 linux-source-6.12 lz4"
    done = install("gcc", known, "gcc", "lz4", "--", "linux-source-6.12", "linux-source-6.1")
    assert done.returncode == 0, done.stderr
    update, installed = debian.read_text().splitlines()
    assert update.startswith("update")
    assert [word for word in installed.split() if not word.startswith("-")] == ["install", "lz4", "linux-source-6.12"]


def test_nothing_is_asked_of_the_network_when_nothing_is_missing(debian: Path) -> None:
    done = install("gcc linux-source-6.12", "gcc", "gcc", "--", "linux-source-6.12", "linux-source-6.1")
    assert (done.returncode, done.stdout, debian.read_text()) == (0, "", "")


def test_a_package_that_the_release_has_not_is_named(debian: Path) -> None:
    done = install("gcc", "gcc lz4-doc", "gcc", "lz4", "--")
    assert (done.returncode, done.stderr) == (1, "this release of Debian has no package lz4\n")
    assert "install" not in debian.read_text()


def test_make_installs_what_building_a_kernel_needs() -> None:
    listed = re.search(r"^PACKAGES := (.*?[^\\])$", (TOP / "Makefile").read_text(), re.MULTILINE | re.DOTALL)
    assert listed
    packages = set(listed[1].replace("\\\n", " ").split())
    # tar is essential in Debian; pkg-config is how the build finds libzstd.
    assert {*TOOLS.values(), "pkg-config"} - packages == {"tar"}


def test_a_clean_room_takes_the_mirrors_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (
        "http://mirror/debian bookworm\nhttp://mirror/debian bookworm\nhttp://mirror/security bookworm-security\n"
        "http://mirror/debian bookworm-backports\n"
    )
    monkeypatch.delenv("MIRROR", raising=False)
    monkeypatch.setattr(clean_room, "output", lambda *_: lines)
    assert clean_room.mirrors("trixie") == [
        ("http://mirror/debian", "trixie"),
        ("http://mirror/security", "trixie-security"),
    ]
    monkeypatch.setattr(clean_room, "output", lambda *_: "")
    with pytest.raises(SystemExit, match="give MIRROR=URL"):
        clean_room.mirrors("trixie")
    monkeypatch.setenv("MIRROR", "http://own")
    assert clean_room.mirrors("trixie") == [("http://own", "trixie")]


def test_a_clean_room_in_which_something_is_mounted_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = f"22 1 8:2 / / rw - ext4 /dev/sda2 rw\n30 22 0:5 / {tmp_path}/room/proc rw - proc proc rw\n"
    room = tmp_path / "room"
    (room / "proc").mkdir(parents=True)
    real = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, *a: mounted if str(self) == "/proc/self/mountinfo" else real(self, *a)
    )
    with pytest.raises(SystemExit, match=r"something is mounted at .*/room/proc"):
        clean_room.remove(room)
    assert room.exists()
    mounted = mounted.splitlines(keepends=True)[0]
    clean_room.remove(room)
    assert not room.exists()
