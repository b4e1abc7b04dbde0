"""The kernel's command line: what the kernel reads, and what can be written for it to read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kjump.errors import PlanError
from kjump.formats import cmdline
from kjump.host import procfs
from kjump.init import system
from kjump.kexec import second_kernel
from kjump.target.device import Place

_BLANKS = b"\t\n\v\f\r \xa0"
# Dense in what matters: quotes, blanks, the bytes of a letter one of which is a blank to the kernel, and ordinary ones.
LINES = st.lists(
    st.sampled_from([b'"', b" ", b"=", b"--", b"a", b"b=", b"'", b"\\", b"-", b"\n", "à".encode(), b"\xff", b"#"])
).map(b"".join)
VALUES = st.text(st.sampled_from("ab=-'\\\" \t#$é\udcff"), max_size=8)


def read(line: str | bytes) -> list[tuple[str, str | None]]:
    """Return the kernel's parameters of `line`."""
    return [(p.name, p.value) for p in cmdline.parse(line).parameters]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", []),
        (" \t\n", []),
        ("quiet root=/dev/sda2", [("quiet", None), ("root", "/dev/sda2")]),
        ("motd=it's", [("motd", "it's")]),
        ("vt.prompt='", [("vt.prompt", "'")]),
        (r"initrd=\intel-ucode.img foo=\ ", [("initrd", r"\intel-ucode.img"), ("foo", "\\")]),
        (r"root=/dev/disk/by-partlabel/Root\x20Disk", [("root", r"/dev/disk/by-partlabel/Root\x20Disk")]),
        ("# a=b", [("#", None), ("a", "b")]),
        ('acpi_osi="!Windows 2012" a', [("acpi_osi", "!Windows 2012"), ("a", None)]),
        ('"acpi_osi=!Windows 2012" a', [("acpi_osi", "!Windows 2012"), ("a", None)]),
        ('a="x', [("a", "x")]),
        ('a="x y ', [("a", "x y ")]),
        ('"', [("", None)]),
        ('a="', [("a", "")]),
        ('a="" b=', [("a", ""), ("b", "")]),
        ('a=x"y z" b', [("a", 'x"y z"'), ("b", None)]),
        ('a=x"y', [("a", 'x"y')]),
        ('a=""b""', [("a", '"b"')]),
        ('"a="x""', [("a", 'x"')]),
        ("=a =b=c", [("=a", None), ("=b", "c")]),
        ("a=b=c", [("a", "b=c")]),
        ("a\0b", [("a", None)]),
        (b"a\xa0b", [("a", None), ("b", None)]),
        (b"a=\xff", [("a", "\udcff")]),
    ],
)
def test_words_as_the_kernel_reads_them(line: str | bytes, expected: list[tuple[str, str | None]]) -> None:
    assert read(line) == expected


def test_what_follows_two_dashes_is_for_init() -> None:
    line = cmdline.parse("a=1 -- a=2 single -- lost")
    assert [p.written for p in line.parameters] == ["a=1"]
    assert [p.written for p in line.init_arguments] == ["a=2", "single"]
    assert read("a --b=c --=d -- e") == [("a", None), ("--b", "c"), ("--", "d")]


def test_the_last_of_several_counts_and_names_know_no_dashes() -> None:
    line = cmdline.parse("console=tty0 kjump.resume-offset=1 console=ttyS0 no-timer_check kjump.resume_offset=2")
    assert line.values("console") == ["tty0", "ttyS0"]
    assert line.get("kjump.resume_offset") == "2"
    assert "no_timer_check" in line and "no-timer-check" in line and "timer" not in line
    assert line.get("no_timer_check") is None
    assert line.options() == {"console": "ttyS0", "kjump.resume_offset": "2", "no_timer_check": ""}


def reference(line: bytes) -> list[bytes]:
    """Return the words with their quotes, byte by byte: what `parse` finds by an expression."""
    words, word, open_quote = [], b"", False
    for byte in line:
        if byte in _BLANKS and not open_quote:
            words += [word] if word else []
            word = b""
        else:
            word += bytes([byte])
            open_quote ^= byte == ord('"')
    return words + ([word] if word else [])


@given(LINES)
def test_words_end_where_a_reader_byte_by_byte_ends_them(line: bytes) -> None:
    found = cmdline.parse(line)
    words = [cmdline.encode(p.written) for p in (*found.parameters, *found.init_arguments)]
    expected = reference(line)
    assert words == [w for w in expected if w not in (b"--", b'"--"', b'"--')][: len(words)]
    if not any(b"--" in w for w in expected):
        assert words == expected


@given(st.binary() | st.text(st.characters()))
def test_every_line_can_be_read(line: str | bytes) -> None:
    found = cmdline.parse(line)
    found.options()
    list(cmdline.rewritten(found.parameters))


@given(st.binary().filter(lambda line: b"\0" not in line))
def test_bytes_that_are_no_text_survive(line: bytes) -> None:
    assert cmdline.encode(cmdline.decode(line)) == line


@given(VALUES, st.none() | VALUES)
def test_what_is_written_is_read_the_same_among_other_words(name: str, value: str | None) -> None:
    try:
        written = cmdline.word(name, value)
    except PlanError:
        assert '"' in f"{name}{value}" or not name or set(name) & set("= \t") or name == "--"
    else:
        assert read(f"first {written} last") == [("first", None), (name, value), ("last", None)]


@pytest.mark.parametrize("value", ["", "plain", "two words", "it's", "\\", 'a"b c"d', '"b"', "voilà", "\udcff", "a=b"])
def test_values_that_can_be_written(value: str) -> None:
    assert read(cmdline.word("name", value)) == [("name", value)]


@pytest.mark.parametrize("value", ['a "b', 'a"b', '"a" b c "d', "a\0b", "\ud800"])
def test_a_value_that_no_kernel_could_read_is_refused(value: str) -> None:
    with pytest.raises(PlanError, match="kernel's command line"):
        cmdline.word("name", value)


def test_joined_lines_keep_their_words_and_what_is_for_init_stays_last() -> None:
    assert cmdline.join(["", ' a  b="c  d" -- x ', "", "e", "-- y"]) == 'a b="c  d" e -- x y'


@pytest.mark.parametrize("line", ['a="b', 'x -- "y', '"'])
def test_a_quote_left_open_would_swallow_what_is_joined_to_it(line: str) -> None:
    with pytest.raises(PlanError, match="not closed"):
        cmdline.join([line, "elfcorehdr=0x1000"])


@given(st.lists(LINES.map(cmdline.decode), max_size=3))
def test_joined_lines_are_read_as_the_parts_are(parts: list[str]) -> None:
    try:
        joined = cmdline.parse(cmdline.join(parts))
    except PlanError:
        assert any(part.count('"') % 2 for part in parts)
    else:
        assert joined.parameters == tuple(p for part in parts for p in cmdline.parse(part).parameters)
        assert joined.init_arguments == tuple(p for part in parts for p in cmdline.parse(part).init_arguments)


def test_what_was_open_at_the_end_of_the_line_is_closed_when_it_is_passed_on() -> None:
    assert second_kernel.machine_options('root=/dev/sda2 pci="nomsi') == 'pci="nomsi"'.replace('"', "")
    assert second_kernel.machine_options('pci="nomsi x') == 'pci="nomsi x"'
    assert second_kernel.machine_options('acpi=off pci=no"msi') == "acpi=off"


def test_options_of_the_machine_are_passed_on_as_they_are_written() -> None:
    own = 'acpi="a b" motd=it\'s console=tty0 "pci=c d" no-timer-check earlycon="uart8250,io" x=\' -- console=ttyS9'
    assert (
        second_kernel.machine_options(own) == 'acpi="a b" console=tty0 "pci=c d" no-timer-check earlycon="uart8250,io"'
    )
    assert " quiet " not in second_kernel.command_line('ignore-loglevel prompt="', "second", la57=True)


@pytest.mark.parametrize("line", ["motd=it's", "prompt='", 'a="b', "back\\", '"', "\udcff=\udcfe"])
def test_a_boot_reads_any_command_line(line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "cmdline"
    file.write_bytes(cmdline.encode(f"kjump.resume=/dev/sdb2 root=/dev/old root=/dev/sda2 {line}") + b"\n")
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *a, **k: real(file if str(self) == "/proc/cmdline" else self, *a, **k)
    )
    options = system.kernel_options()
    assert options["root"] == "/dev/sda2" and options["kjump.resume"] == "/dev/sdb2"
    assert procfs.command_line().endswith(line)


def test_options_for_the_next_boot_are_written_so_that_it_reads_them() -> None:
    assert Place("/dev/disk/by-label/my disk").boot_options() == ('kjump.resume="/dev/disk/by-label/my disk"',)
    assert Place("/dev/sda").boot_options() == ("kjump.resume=/dev/sda",)
