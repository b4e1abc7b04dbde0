"""Images whose facts have one thing wrong, with right checksums: each boot is an ordinary one, the image is invalid.

The images are written by kjump's own writer into the simulated machine's disk, and given to the real boot role.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import crash
import pytest
from crash import Machine, failing
from examples import FACTS
from json_mutants import HUGE, changed, places, removed

from kjump.formats.superblock import State
from kjump.hibernate import suspend
from kjump.image import headers as image_headers
from kjump.image.facts import ImageFacts
from kjump.init import look_for
from kjump.init.roles import boot
from kjump.ranges import Range
from kjump.target import filesystems

VALUES: list[Any] = [None, 7, "text", [], {}, HUGE]


@pytest.fixture
def machine() -> Iterator[Machine]:
    with crash.machine() as made:
        yield made


class Written:
    """Facts as they are to be written, whatever they are."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self.kind = FACTS.kind
        self.dump_level = None

    def to_json(self) -> Any:
        return self._value


def write(machine: Machine, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let B save an image whose facts are `value`; the machine is off then."""
    build = image_headers.build_headers

    def build_headers(keep: Any, note: Any, _: Any, shadow: Any, ram: Any) -> Any:
        return build(keep, note, Written(value), shadow, ram)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(image_headers, "build_headers", build_headers)
        machine.cookie = machine.open().arm().cookie
        assert machine._run("B", machine.b) == "off"
    machine.disk.lose_power(cache=False)
    assert machine.state is State.COMPLETE


def sound_facts() -> Any:
    """Facts with every field, of which the boot role takes every one; the file system is found as it was."""
    page = 4096
    system = replace(
        FACTS.system, memory_map=crash.MEMORY_MAP, window=Range(16 * page, 24 * page), low=Range(page, 2 * page)
    )
    system = replace(system, gate_address=23 * page)
    gate = replace(FACTS.gate, mailbox=8 * page)
    return json.loads(json.dumps(replace(FACTS, system=system, gate=gate, dump_level=None).to_json()))


def variants() -> Iterator[tuple[str, Any]]:
    facts = sound_facts()
    for path in places(facts):
        name = ".".join(map(str, path))
        yield f"{name} removed", removed(facts, path)
        for value in VALUES:
            yield f"{name} is {json.dumps(value)[:10]}", changed(facts, path, value)


def is_refused(value: Any) -> bool:
    """Whether something of `value` is not as it was, to whoever reads it: an optional fact may lack."""
    from kjump.errors import FormatError
    from kjump.formats.record import Record

    try:
        ImageFacts.from_json(Record(value, "facts"))
    except FormatError:
        return True
    return False


def test_sound_facts_do_resume(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystems, "_state_or_none", lambda device: FACTS.file_systems[0].state)
    write(machine, sound_facts(), monkeypatch)
    assert machine.boot() == "resumed"


def test_any_fact_that_is_wrong_is_an_ordinary_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystems, "_state_or_none", lambda device: FACTS.file_systems[0].state)
    tried = 0
    with crash.machine() as machine:
        write(machine, sound_facts(), monkeypatch)
        for name, value in variants():
            if not is_refused(value):
                continue
            tried += 1
            write_again(machine, value, monkeypatch)
            assert machine.boot() == "ordinary", name
            assert machine.state is State.INVALID, name
            assert "not resumed: " in machine.lines[-2] and "unexpected" not in machine.lines[-2], name
    assert tried > 400


def write_again(machine: Machine, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write(machine, value, monkeypatch)
    machine.lines.clear()


ODD = [KeyError("window"), TypeError("odd"), MemoryError(), OSError(5, "I/O"), RecursionError(), OverflowError()]


@pytest.mark.parametrize("error", ODD, ids=repr)
@pytest.mark.parametrize("where", ["open_at", "open_for_resume", "_resume", "wait_for_device", "own_initrd"])
def test_whatever_is_raised_before_the_jump_is_an_ordinary_boot(
    machine: Machine, where: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystems, "_state_or_none", lambda device: FACTS.file_systems[0].state)
    write(machine, sound_facts(), monkeypatch)

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(look_for if where == "wait_for_device" else boot, where, fail)
    if where == "own_initrd":
        monkeypatch.setattr(boot, "_land_aside", lambda role, opened: None)
        monkeypatch.setattr(boot, "KERNEL", type("Kernel", (), {"read_bytes": staticmethod(bytes)}))
    assert machine.boot() == "ordinary"
    assert machine.state is State.INVALID
    assert any(f"unexpected {type(error).__name__}" in line for line in machine.lines)


@pytest.mark.parametrize("times", [1, 2, 4])
@pytest.mark.parametrize("after", [0, 1, 2], ids=["superblock", "seek table", "headers"])
def test_a_disk_that_wakes_up_late_resumes(
    machine: Machine, times: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystems, "_state_or_none", lambda device: FACTS.file_systems[0].state)
    write(machine, sound_facts(), monkeypatch)
    machine.event = failing("boot", "read", times=times, after=after)
    assert machine.boot() == "resumed"


def test_a_snapshot_is_left_alone(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.then = "back"
    machine.travel(kind=suspend.Kind.SNAPSHOT)
    before = os.pread(machine.disk.fd, 4096, 0)

    def fail(*_: Any, **__: Any) -> Any:
        raise KeyError("window")

    monkeypatch.setattr(boot, "open_for_resume", fail)
    assert machine.boot() == "ordinary"
    assert os.pread(machine.disk.fd, 4096, 0) == before
