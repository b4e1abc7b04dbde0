from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import damaged, survives

from kjump.errors import FormatError
from kjump.formats import vmcoreinfo
from kjump.formats.vmcoreinfo import VmcoreInfo

TEXT = """OSRELEASE=6.12.117
BUILD-ID=9e1b1f3a
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffff8264f0c0
OFFSET(uts_namespace.name)=0
NUMBER(VMALLOC_START)=0xffffc90000000000
SIZE(page)=64
OFFSET(page.flags)=0
LENGTH(zone.free_area)=11
NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129
NUMBER(phys_base)=-16777216
KERNELOFFSET=1c00000
CONFIG_X86_PAE=y
CRASHTIME=1700000000
"""


@pytest.fixture
def info() -> VmcoreInfo:
    return vmcoreinfo.parse(TEXT.encode() + bytes(7))


def test_every_kind_of_entry(info: VmcoreInfo) -> None:
    assert (info.release, info.build_id, info.page_size) == ("6.12.117", "9e1b1f3a", 4096)
    assert info.symbol("init_uts_ns") == 0xFFFFFFFF8264F0C0
    assert (info.size("page"), info.offset("page.flags"), info.length("zone.free_area")) == (64, 0, 11)
    assert info.number("PAGE_BUDDY_MAPCOUNT_VALUE") == -129
    assert info.number("VMALLOC_START") == 0xFFFFC90000000000
    assert info.kernel_offset == 0x1C00000
    assert info.crash_time == 1700000000
    assert info.config("X86_PAE") and not info.config("X86_64")
    assert info.text == TEXT


@pytest.mark.parametrize("kind", ["symbol", "size", "offset", "length", "number"])
def test_what_is_missing_is_named(info: VmcoreInfo, kind: str) -> None:
    with pytest.raises(FormatError, match=rf"no {kind.upper()}\(nothing\)"):
        getattr(info, kind)("nothing")
    assert getattr(info, f"get_{kind}")("nothing", None) is None


def test_what_is_there_wins_over_the_default(info: VmcoreInfo) -> None:
    assert info.get_size("page", 56) == 64
    assert info.get_offset("page.flags", None) == 0


def test_an_empty_text() -> None:
    info = vmcoreinfo.parse(b"")
    assert (info.kernel_offset, info.build_id, info.crash_time) == (0, None, None)
    with pytest.raises(FormatError, match="no OSRELEASE"):
        _ = info.release
    with pytest.raises(FormatError, match="no PAGESIZE"):
        _ = info.page_size


@pytest.mark.parametrize("value", ["", "-", "ten", "1_0", " 1", "+1", "0x", "--1", "9" * 5000])
def test_what_is_no_number(value: str) -> None:
    with pytest.raises(FormatError, match=r"NUMBER\(x\)"):
        VmcoreInfo(f"NUMBER(x)={value}\n").number("x")


def test_a_page_size_that_cannot_be() -> None:
    with pytest.raises(FormatError, match="power of two"):
        _ = VmcoreInfo("PAGESIZE=4095").page_size


def test_what_is_no_text_spoils_its_own_line_only() -> None:
    info = vmcoreinfo.parse(b"OSRELEASE=6\xff\nPAGESIZE=\xb2\nSIZE(page)=64\n")
    assert (info.release, info.size("page")) == ("6\\xff", 64)
    with pytest.raises(FormatError, match="PAGESIZE"):
        _ = info.page_size


@pytest.mark.parametrize(
    "entry",
    [
        *("SYMBOL(x)=-1", "SYMBOL(x)=1" + 16 * "0", "SIZE(x)=0", "SIZE(x)=-8", "SIZE(x)=99999999999"),
        *("OFFSET(x)=-1", "OFFSET(x)=99999999999", "LENGTH(x)=-1", "LENGTH(x)=99999999999"),
        *("NUMBER(x)=18446744073709551616", "NUMBER(x)=-9223372036854775809"),
    ],
)
def test_numbers_that_cannot_be(entry: str) -> None:
    kind = entry.partition("(")[0].lower()
    with pytest.raises(FormatError, match="is impossible"):
        getattr(VmcoreInfo(entry), kind)("x")


@pytest.mark.parametrize("entry", ["CRASHTIME=-1", "CRASHTIME=253402300800", "KERNELOFFSET=-1", "PAGESIZE=1073741824"])
def test_times_and_places_that_cannot_be(entry: str) -> None:
    info = VmcoreInfo(entry)
    with pytest.raises(FormatError, match="is impossible"):
        _ = (info.crash_time, info.kernel_offset, info.page_size)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.integers(-(2**63), 2**63 - 1)))
def test_numbers_are_read_back(numbers: dict[str, int]) -> None:
    info = vmcoreinfo.parse("".join(f"NUMBER({name})={value}\n" for name, value in numbers.items()))
    assert {name: info.number(name) for name in numbers} == numbers


def read_everything(data: bytes) -> None:
    info = vmcoreinfo.parse(data)
    for key in info.entries:
        kind, _, name = key.rstrip(")").partition("(")
        if kind in ("SYMBOL", "SIZE", "OFFSET", "LENGTH", "NUMBER") and f"{kind}({name})" in info.entries:
            getattr(info, kind.lower())(name)
    assert info.kernel_offset is not None and info.page_size and info.release is not None


@given(damaged(TEXT.encode()))
def test_damaged(data: bytes) -> None:
    survives(read_everything, data)
