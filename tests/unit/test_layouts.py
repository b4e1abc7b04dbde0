"""What assembly and C share with Python is said once: a field on one side only ends the build."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kjump.gates import layouts
from kjump.layout import Field, Layout, LayoutError, Numbers, header

REPOSITORY = Path(__file__).parents[2]
Generate = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def generate(tmp_path: Path) -> Generate:
    """Writes the headers from a copy of the sources in which `old` of a file is replaced by `new`."""

    def run(file: str = "", old: str = "", new: str = "") -> subprocess.CompletedProcess[str]:
        source = tmp_path / "src"
        shutil.copytree(REPOSITORY / "src" / "kjump", source / "kjump", ignore=shutil.ignore_patterns("*.S", "*.c"))
        if file:
            text = (source / "kjump" / file).read_text()
            assert text.count(old) == 1, f"{file} has {text.count(old)} of {old!r}"
            (source / "kjump" / file).write_text(text.replace(old, new))
        script = REPOSITORY / "build-aux" / "headers.py"
        command = [sys.executable, str(script), str(source), str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


def test_the_headers_have_every_field_and_number(generate: Generate, tmp_path: Path) -> None:
    assert generate().returncode == 0
    text = (tmp_path / "gate.h").read_text()
    for name in layouts.GATE.names():
        assert f"#define GATE_{name.upper()} " in text
    lines = {" ".join(line.split()[1:3]) for line in text.splitlines() if line.startswith("#define")}
    known = {"GATE_MAGIC 0x40", "GATE_COOKIE 0xc8", "GATE_SWITCHES 0x128", "MAILBOX_WANTED 0xff8", "DOOR_GATE 0x50"}
    assert known <= lines, "as they were when each side had its own list"
    written = {path.name for path in tmp_path.glob("*.[hl]*")}
    assert written == {"gate.h", "call.h", "bios.h", "control.h", "native.h", "bios-symbols.ld"}
    assert "BIOS_STACK = 0xb000;" in (tmp_path / "bios-symbols.ld").read_text()


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        ("gates/__init__.py", "    b_efer: int = 0\n", "    b_efer: int = 0\n    b_cr4: int = 0\n", "has b_cr4"),
        ("gates/__init__.py", "    b_efer: int = 0\n", "", "has b_efer"),
        (
            "gates/__init__.py",
            "    gdt_base: int\n    gdt_limit: int\n",
            "    gdt_limit: int\n    gdt_base: int\n",
            "order",
        ),
        ("gates/layouts.py", '    Field("switches"', '    Field("visits"),\n    Field("switches"', "has visits"),
        (
            "gates/layouts.py",
            '    Field("gdt_limit", "for',
            '    Field("idt_base"),\n    Field("gdt_limit", "for',
            "idt_base",
        ),
        ("gates/call.py", "    out_size: int\n", "    out_size: int\n    deadline: int\n", "has deadline"),
        (
            "gates/layouts.py",
            '    Field("out_address"',
            '    Field("deadline"),\n    Field("out_address"',
            "has deadline",
        ),
        ("gates/layouts.py", '"es", "flags")', '"es", "fs", "flags")', "has fs"),
    ],
)
def test_a_field_on_one_side_only_ends_the_build(
    file: str, old: str, new: str, complaint: str, generate: Generate
) -> None:
    done = generate(file, old, new)
    assert done.returncode == 1
    assert done.stderr.startswith("headers.py: kjump.") and len(done.stderr.splitlines()) == 1
    assert complaint in done.stderr


def test_a_layout_gives_its_fields_places() -> None:
    layout = Layout("L", Field("a"), Field("b", kind="I"), Field("c", kind="4s", at=0x20), start=0x10)
    assert [layout.offset(name) for name in "abc"] == [0x10, 0x18, 0x20]
    assert layout.end == 0x24
    assert layout.struct().pack(1, 2, b"abcd") == b"\1" + bytes(7) + b"\2" + bytes(7) + b"abcd"
    assert layout.struct("b", "c").size == 12
    assert list(layout.definitions())[2].split() == ["#define", "L_C", "0x20"]


@pytest.mark.parametrize("fields", [(Field("a"), Field("b", at=4)), (Field("a"), Field("a"))], ids=["overlap", "twice"])
def test_a_layout_that_cannot_be_is_refused(fields: tuple[Field, ...]) -> None:
    with pytest.raises(ValueError, match="L: "):
        Layout("L", *fields)


def test_a_class_with_other_fields_is_refused() -> None:
    @dataclass
    class Two:
        a: int
        b: int

    Layout("L", Field("a"), Field("b"), Field("c")).check(Two, last="b")
    with pytest.raises(LayoutError, match=r"Two and the layout L .* only one of them has c$"):
        Layout("L", Field("a"), Field("b"), Field("c")).check(Two)


def test_a_header_is_guarded_and_says_who_wrote_it() -> None:
    text = header("x.h", "Note.", (Numbers("X", ("ONE", 1, "first")), "/* text */"))
    assert text.splitlines()[0] == "/* Written by build-aux/headers.py; do not edit. */"
    assert "#ifndef KJUMP_X_H\n#define KJUMP_X_H" in text and text.endswith("#endif\n")
    assert "0x1 /* first */" in text
