"""The gate: its binary interface, and the identity tables it stands on."""

import re
import struct
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kjump.gates as gates
from kjump.errors import FormatError

HEADER = Path(gates.__file__).with_name("gate.h")


def header_numbers() -> dict[str, int]:
    return {
        name: int(value, 0) for name, value in re.findall(r"#define (\w+)\s+(0x[0-9a-f]+|\d+)\b", HEADER.read_text())
    }


def test_python_and_assembly_agree_on_every_field() -> None:
    numbers = header_numbers()
    values: dict[str, Any] = {
        f.name: bytes(range(16)) if f.name == "cookie" else 0x1000 + i for i, f in enumerate(fields(gates.Gate))
    }
    binary = gates.Gate(**values).pack()
    for name, value in values.items():
        offset = numbers[f"GATE_{name.upper()}"]
        size = 16 if name == "cookie" else 8
        expected = value if isinstance(value, bytes) else struct.pack("<Q", value)
        assert binary[offset : offset + size] == expected, name


def test_constants_agree_with_the_header() -> None:
    numbers = header_numbers()
    for name in ("GATE_SIZE", "GATE_ENTRY", "GATE_WAY_BACK"):
        assert getattr(gates, name) == numbers[name]
    assert numbers["GATE_STATE_FRESH"] == gates.STATE_FRESH
    assert numbers["GATE_STATE_ENTERED"] == gates.STATE_ENTERED
    assert numbers["GATE_FLAG_INIT_CPUS"] == gates.FLAG_INIT_CPUS


def test_built_gate_has_its_size_magic_and_entries() -> None:
    binary = gates.gate_binary()
    assert len(binary) == gates.GATE_SIZE
    gates.Gate.unpack(binary)
    jump = 0xE9, 0xEB
    assert binary[gates.GATE_ENTRY] in jump
    assert binary[gates.GATE_WAY_BACK] in jump


def test_fields_survive_a_round_trip_and_leave_the_code_alone() -> None:
    gate = gates.Gate(peer_entry=0x1000200, cookie=b"c" * 16, next_entry=7)
    binary = gate.pack()
    assert gates.Gate.unpack(binary) == gate
    assert binary[0x140:] == gates.gate_binary()[0x140:]


@pytest.mark.parametrize("damaged", [b"", bytes(gates.GATE_SIZE), gates.gate_binary()[:0x80]])
def test_what_is_no_gate_is_refused(damaged: bytes) -> None:
    with pytest.raises(FormatError):
        gates.Gate.unpack(damaged)


def walk(tables: bytes, base: int, root: int, levels: int, address: int) -> int | None:
    """Translate as the CPU does."""
    table = root
    for level in range(levels - 1, -1, -1):
        shift = 12 + 9 * level
        offset = table - base + (address >> shift & 511) * 8
        (entry,) = struct.unpack_from("<Q", tables, offset)
        if not entry & 1:
            return None
        if level == 0 or entry & 0x80:
            mask = (1 << shift) - 1
            return int(entry & ~0xFFF & ~mask) | (address & mask)
        table = entry & ~0xFFF
    raise AssertionError("no leaf")


@given(
    limit=st.integers(1, 3 << 40).map(lambda n: n // 4096 * 4096 + 4096),
    share=st.floats(0, 0.999999),
    levels=st.sampled_from([4, 5]),
)
def test_huge_tables_map_every_address_to_itself(limit: int, share: float, levels: int) -> None:
    base = 0x8FF6000
    tables = gates.identity_tables(base, limit, huge=True)
    assert len(tables) == gates.identity_tables_size(limit, huge=True)
    address = int(limit * share)
    root = base if levels == 5 else base + 4096
    assert walk(tables, base, root, levels, address) == address


@given(gigabytes=st.integers(1, 20), share=st.floats(0, 0.999999), levels=st.sampled_from([4, 5]))
def test_small_tables_map_every_address_to_itself(gigabytes: int, share: float, levels: int) -> None:
    base, limit = 0x1000000, gigabytes << 30
    tables = gates.identity_tables(base, limit, huge=False)
    assert len(tables) == gates.identity_tables_size(limit, huge=False)
    address = int(limit * share)
    root = base if levels == 5 else base + 4096
    assert walk(tables, base, root, levels, address) == address
    assert walk(tables, base, root, levels, limit + (1 << 30)) is None or gigabytes % 512 == 0


def test_tables_end_at_256_tib() -> None:
    with pytest.raises(ValueError, match="256 TiB"):
        gates.identity_tables(0, 1 << 49, huge=True)


def test_the_door_and_the_header_agree() -> None:
    numbers = header_numbers()
    assert numbers["DOOR_SIZE"] == gates.DOOR_SIZE
    assert numbers["GATE_SWITCH"] == gates.GATE_SWITCH
    assert numbers["GATE_FLAG_CHOOSE"] == gates.FLAG_CHOOSE
    assert numbers["GATE_STATE_PARKED"] == gates.STATE_PARKED
    values = {f.name: 0x2000 + i for i, f in enumerate(fields(gates.Door))}
    packed = gates.Door(**values).pack()
    assert len(packed) == gates.DOOR_SIZE
    for name, value in values.items():
        offset = numbers[f"DOOR_{name.upper()}"]
        assert packed[offset : offset + 8] == struct.pack("<Q", value), name
    first = numbers["DOOR_CR3_4LEVEL"]
    assert packed[:first] == gates.door_binary()[:first]
