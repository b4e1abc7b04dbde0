"""The kernel's log: each byte of the ring is copied a bounded number of times."""

from __future__ import annotations

from typing import Any, SupportsIndex

import foreign

from kjump.dump import dmesg
from kjump.formats.vmcoreinfo import VmcoreInfo

AT = 0xFFFF888000000000


class Counted(bytes):
    """Bytes that count those which are copied out of them."""

    copied = 0

    def __getitem__(self, key: SupportsIndex | slice) -> Any:
        found = super().__getitem__(key)
        Counted.copied += len(found) if isinstance(found, bytes) else 1
        return found


class Layout:
    """A kernel of which nothing is there but its log."""

    word = 8
    memory_size = 1 << 40

    def __init__(self, data: bytes, text: str) -> None:
        self.info = VmcoreInfo(text)
        self._data = data

    def read(self, linear: int, length: int) -> bytes:
        return Counted(self._data[linear - AT : linear - AT + length])

    def read_word(self, linear: int) -> int:
        return int.from_bytes(self._data[linear - AT : linear - AT + 8], "little")


def test_a_panic_message_cannot_command_a_terminal() -> None:
    """It goes into the reasons that other commands print."""
    record = dmesg.Record(0, 0, 0, "Kernel panic - not syncing: \x1b[2Jno\nmore")
    assert dmesg.panic_message([record]) == "Kernel panic - not syncing: \\x1b[2Jno"


def test_records_are_read_in_linear_time() -> None:
    lines = [b"line %d" % i for i in range(2000)]
    data, text = foreign.log(lines, AT, count_bits=11, text_bits=16)
    found = list(dmesg.records(Layout(data, text)))  # type: ignore[arg-type]
    assert [record.text.encode() for record in found] == lines
    assert Counted.copied < 20 * len(data)
