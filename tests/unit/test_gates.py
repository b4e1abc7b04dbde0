"""The gate: its binary interface, and the identity tables it stands on."""

import struct
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kjump.gates as gates
from kjump.errors import FormatError
from kjump.gates import layouts


def test_every_field_lies_where_its_layout_says() -> None:
    values: dict[str, Any] = {
        f.name: bytes(range(16)) if f.name == "cookie" else 0x1000 + i for i, f in enumerate(fields(gates.Gate))
    }
    binary = gates.Gate(**values).pack()
    for name, value in values.items():
        expected = value if isinstance(value, bytes) else struct.pack("<Q", value)
        assert binary[layouts.GATE.offset(name) :].startswith(expected), name
    assert layouts.GATE.end <= layouts.GATE_NUMBERS["FIELDS_END"]


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
    assert binary[layouts.GATE.end :] == gates.gate_binary()[layouts.GATE.end :]


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


@pytest.mark.parametrize("huge", [False, True])
def test_all_pages_are_writable_with_write_protection_on(huge: bool) -> None:
    base = 0x1000000
    tables = gates.identity_tables(base, 5 << 30, huge=huge)
    entries = [entry for (entry,) in struct.iter_unpack("<Q", tables) if entry]
    assert entries and all(entry & 3 == 3 for entry in entries), "present and writable, on every level"


def test_tables_end_at_256_tib() -> None:
    with pytest.raises(ValueError, match="256 TiB"):
        gates.identity_tables(0, 1 << 49, huge=True)


def test_the_doors_fields_lie_where_their_layout_says() -> None:
    values = {f.name: 0x2000 + i for i, f in enumerate(fields(gates.Door))}
    packed = gates.Door(**values).pack()
    assert len(packed) == gates.DOOR_SIZE
    for name, value in values.items():
        assert packed[layouts.DOOR.offset(name) :].startswith(struct.pack("<Q", value)), name
    first = layouts.DOOR.offset("cr3_4level")
    assert packed[:first] == gates.door_binary()[:first]
