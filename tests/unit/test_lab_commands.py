"""`kjump lab` where something is missing, and where nobody watches."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from kjump import cli
from kjump.lab.machine import kernel_source, tools
from kjump.lab.machine.kernel import LabKernel

DEMOS = ["hibernate", "faults", "big-image", "call", "switch", "snapshot", "rollback"]


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run kjump; it must fail with one sentence and exit status 1. Return the sentence."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("kjump: ") and said.err.count("\n") == 1
    return said.err


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Let a Python package be missing."""
    real = importlib.util.find_spec

    def find_spec(name: str, package_: str | None = None) -> ModuleSpec | None:
        return None if name.partition(".")[0] == package else real(name, package_)

    monkeypatch.setattr("kjump.lab.requirements.find_spec", find_spec)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("command", [*([["lab", "demo", name] for name in DEMOS]), ["lab", "vmcore", "out"]])
def test_without_programs_their_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str]
) -> None:
    monkeypatch.setattr("kjump.lab.requirements._is_there", lambda _: True)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tools, "_ADMINISTRATORS", str(tmp_path))
    said = fails(capsys, *command)
    assert "apt install " in said and "qemu-system-x86" in said and "e2fsprogs" in said
    assert ("gcc" in said) == (command[-1] == "call")


@pytest.mark.parametrize("name", DEMOS)
def test_without_qmp_its_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    without(monkeypatch, "qemu")
    assert "pip install 'kjump[" in fails(capsys, "lab", "demo", name)


def test_calls_need_the_emulator(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    without(monkeypatch, "unicorn")
    assert "pip install 'kjump[emulator]'" in fails(capsys, "lab", "demo", "call")


@pytest.mark.parametrize("name", DEMOS)
def test_without_a_kernels_source_its_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr("kjump.lab.requirements.check", lambda **_: None)
    monkeypatch.setattr(kernel_source._tarball, "__defaults__", (tmp_path,))
    monkeypatch.setenv("KJUMP_CACHE", str(tmp_path))
    said = fails(capsys, "lab", "demo", name)
    assert said.startswith("kjump: the source of Linux 6.1") and "apt install linux-source-6.1" in said


def test_progress_of_a_build_is_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    image = tmp_path / "bzImage"
    image.write_bytes(bytes(2048))

    def build(version: str, *, progress: Callable[[float, str], None], **_: object) -> LabKernel:
        progress(0.0, "waiting for another build of it")
        progress(0.0, "unpacking the source")
        for step in range(1, 100):
            progress(step / 100, f"file{step}.o")
        progress(1.0, "it")
        return LabKernel(version, "6.12.117", "x86_64", image, image, None)

    monkeypatch.setattr(kernel_source, "build", build)
    with pytest.raises(SystemExit) as ended:
        cli.main(["lab", "kernel", "build"])
    said = capsys.readouterr()
    assert ended.value.code == 0
    assert said.out == f"{image} (Linux 6.12.117, 2.0 KiB)\n"
    lines = said.err.splitlines()
    assert len(lines) == 11
    assert "waiting for another build of it" in lines[0] and lines[-1].startswith("linux 6.12: 100% ")
