"""The lab's machines themselves."""

import re

import pytest

from kjump.lab.machine.installation import Installation


def test_a_machine_that_is_given_up_leaves_its_registers(installation: Installation) -> None:
    with pytest.raises(RuntimeError), installation.machine() as machine:
        machine.guest.event("ready")
        raise RuntimeError("it hangs")
    assert machine.log is not None
    text = machine.log.read_text()
    assert "Run /init as init process" in text
    for moment in ("when it was given up", "a second later"):
        registers = text.partition(f"--- the CPUs {moment}\n")[2].partition("\n---")[0]
        assert re.findall(r"^CPU#(\d)", registers, re.MULTILINE) == ["0", "1"]
        assert len(re.findall(r"^RIP=[0-9a-f]{16} .*HLT=", registers, re.MULTILINE)) == 2
        assert len(re.findall(r"^CR0=", registers, re.MULTILINE)) == 2
