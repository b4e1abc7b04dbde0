"""The programs on the far side are built against the generated headers, and do not build against others."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
GATES = REPOSITORY / "src" / "kjump" / "gates"


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    """A folder with the headers as the build writes them."""
    script = REPOSITORY / "build-aux" / "headers.py"
    subprocess.run([sys.executable, str(script), str(REPOSITORY / "src"), str(tmp_path)], check=True)
    return tmp_path


def build(headers: Path, sources: list[Path], script: Path) -> str:
    """Build a flat program; returns what compiler and linker complained of, empty when it was made."""
    flags = ["-m64", "-O2", "-ffreestanding", "-fpie", "-fno-stack-protector", "-mgeneral-regs-only", f"-I{headers}"]
    link = ["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", f"-Wl,-T,{script}"]
    command = ["gcc", *flags, *link, *map(str, sources), "-o", str(headers / "made.elf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert bool(done.returncode) is bool(done.stderr), done.stderr
    return done.stderr


def changed(headers: Path, source: Path, old: str, new: str) -> Path:
    text = source.read_text()
    assert old in text
    path = headers / source.name
    path.write_text(text.replace(old, new, 1))
    return path


def test_assembly_with_a_field_that_the_layout_has_not_does_not_build(headers: Path) -> None:
    gate = GATES / "gate64.S"
    assert build(headers, [gate], GATES / "gate.ld") == ""
    more = changed(headers, gate, "GATE_SWITCHES(%rbx)", "GATE_VISITS(%rbx)")
    assert "GATE_VISITS" in build(headers, [more], GATES / "gate.ld")


def test_c_with_a_field_that_the_layout_has_not_does_not_build(headers: Path) -> None:
    shim, call = GATES / "call64.S", GATES / "call.c"
    assert build(headers, [shim, call], GATES / "call.ld") == ""
    more = changed(headers, call, "BLOCK_CALLS", "BLOCK_VISITS")
    assert "BLOCK_VISITS" in build(headers, [shim, more], GATES / "call.ld")
