from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import damaged, survives
from test_formats_bzimage import make

from kjump.errors import FormatError
from kjump.formats import bootparams, bzimage, e820
from kjump.formats.bootparams import BootParams
from kjump.formats.e820 import E820Entry
from kjump.ranges import Range

HEADER = bzimage.parse(make()).header
RAM = E820Entry(Range(0, 0x9FC00), e820.RAM)
PARAMS = BootParams(HEADER, 0x7000, Range(0x10000000, 0x10800000), (RAM,), 0xF5A00)

addresses = st.integers(0, 2**63)
entries = st.builds(
    lambda start, size, kind: E820Entry(Range.of_size(start, size), kind),
    *(addresses, st.integers(0, 2**62), st.sampled_from(list(e820.TYPE_NAMES))),
)
params_strategy = st.builds(
    BootParams,
    st.just(HEADER),
    addresses,
    st.builds(Range.of_size, addresses, addresses),
    st.lists(entries, max_size=128).map(tuple),
    addresses,
    st.sampled_from([b"", bytes(range(64))]),
    st.integers(0, 255),
    addresses,
)


@given(params_strategy)
def test_what_is_written_is_read_back(params: BootParams) -> None:
    page = bootparams.build(params)
    found = bootparams.parse(page)
    assert len(page) == 4096
    assert replace(found, setup_header=HEADER) == params
    assert bootparams.build(found) == page


def test_where_the_fields_are() -> None:
    page = bootparams.build(replace(PARAMS, cmdline_address=0x123456789, screen_info=b"\7"))
    assert page[0] == 7
    assert struct.unpack_from("<Q", page, 0x70) == (0xF5A00,)
    assert struct.unpack_from("<I", page, 0x228) == (0x23456789,)
    assert struct.unpack_from("<I", page, 0xC8) == (1,)
    assert struct.unpack_from("<II", page, 0x218) == (0x10000000, 0x800000)
    assert struct.unpack_from("<II", page, 0xC0) == (0, 0)
    assert page[0x1E8] == 1
    assert struct.unpack_from("<QQI", page, 0x2D0) == (0, 0x9FC00, 1)
    assert page[0x210] == 0xFF and page[0x1EF] == 0
    assert page[0x202:0x206] == b"HdrS"


def test_no_more_than_128_entries() -> None:
    assert bootparams.build(replace(PARAMS, e820=(RAM,) * 128))[0x1E8] == 128
    with pytest.raises(FormatError, match="room for 128 e820 entries, not 129"):
        bootparams.build(replace(PARAMS, e820=(RAM,) * 129))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (replace(PARAMS, screen_info=bytes(65)), "screen_info has 65"),
        (replace(PARAMS, setup_header=b""), "setup_header cannot have 0"),
        (replace(PARAMS, setup_header=bytes(0xA0)), "setup_header cannot have 160"),
        (replace(PARAMS, acpi_rsdp=2**64), "64 bits"),
        (replace(PARAMS, loader_type=256), "8 bits"),
    ],
)
def test_what_cannot_be_built(params: BootParams, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        bootparams.build(params)


def test_what_is_refused_and_why() -> None:
    with pytest.raises(FormatError, match="cut off"):
        bootparams.parse(bytes(4095))
    with pytest.raises(FormatError, match="no setup_header"):
        bootparams.parse(bytes(4096))
    with pytest.raises(FormatError, match="129 e820 entries"):
        bootparams.parse(bytes(0x1E8) + b"\x81" + bytes(4096))


@given(damaged(bootparams.build(PARAMS)))
def test_damaged(data: bytes) -> None:
    survives(bootparams.parse, data)
