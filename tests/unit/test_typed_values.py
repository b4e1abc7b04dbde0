"""Values that cross a process, a disk or a jump: each comes back as it was sent, and a damaged one is one sentence."""

import dataclasses
import json
from typing import Any

import pytest
from examples import EXAMPLES, FACTS, REPORT
from hypothesis import given
from hypothesis import strategies as st
from json_mutants import HUGE, OTHERS, at, changed, kind, places, removed

from kjump.errors import FormatError, UsageError
from kjump.formats.record import JsonObject, Record
from kjump.formats.superblock import Details
from kjump.hibernate.jobs import Assignment, CommandJob, NoJob, ShellJob, job_called
from kjump.hibernate.report import Report, received
from kjump.image.facts import ImageFacts, Kind, SystemFacts
from kjump.kexec.mailbox import Outcome
from kjump.peers.registry import State
from kjump.ranges import Range
from kjump.target.states import Departure, Lineage, Written

WITH_EXAMPLE = pytest.mark.parametrize(
    "example", EXAMPLES, ids=lambda e: type(e).__name__ + (type(e.job).__name__ if isinstance(e, Assignment) else "")
)


def read(example: Any, value: object) -> Any:
    return type(example).from_json(Record(value, "a thing"))


def sent(example: Any) -> Any:
    return json.loads(json.dumps(example.to_json()))


@WITH_EXAMPLE
def test_what_is_sent_comes_back(example: Any) -> None:
    assert read(example, sent(example)) == example


def refused(example: Any, value: object) -> None:
    with pytest.raises(FormatError) as raised:
        read(example, value)
    assert str(raised.value).startswith("a thing") and "\n" not in str(raised.value)


def may_be_anything(example: Any, path: tuple[Any, ...]) -> bool:
    """The names of symbols are no fields of ours: an additional one may go."""
    return isinstance(example, State) and path == ("symbols", "x")


@WITH_EXAMPLE
def test_any_value_of_another_type_is_refused(example: Any) -> None:
    value = sent(example)
    for path in places(value):
        here = at(value, path)
        for other in OTHERS:
            if other is not None and kind(other) != kind(here):
                refused(example, changed(value, path, other))
        if isinstance(here, int) and not isinstance(here, bool):
            refused(example, changed(value, path, HUGE))
        if kind(here) == "number":
            refused(example, changed(value, path, float("nan")))
        if isinstance(here, str):
            refused(example, changed(value, path, "\ud800"))


OPTIONAL = {"journal", "log", "identity", "xfs", "departure", "hook", "dump_level", "loops_per_jiffy"}
REPORTED = {f.name for kind_ in (Report, Details) for f in dataclasses.fields(kind_)}


def is_optional(example: Any, path: tuple[Any, ...]) -> bool:
    reported = isinstance(example, Report | Details) and len(path) == 1
    carried = isinstance(example, Assignment) and path[0] == "report" and len(path) == 2
    if path == ("stored",):
        return isinstance(example, State)
    return path[-1] in OPTIONAL or ((reported or carried) and path[-1] in REPORTED)


@WITH_EXAMPLE
def test_any_value_that_is_missing_is_refused(example: Any) -> None:
    """Or it is optional: then what was read says nothing of it."""
    value = sent(example)
    for path in places(value):
        if not isinstance(path[-1], str) or may_be_anything(example, path):
            continue
        for without in (removed(value, path), changed(value, path, None)):
            if is_optional(example, path):
                assert read(example, without) != example
            else:
                refused(example, without)


@pytest.mark.parametrize("value", [None, 1, "x", [], True])
@WITH_EXAMPLE
def test_what_is_no_object_is_refused(example: Any, value: object) -> None:
    refused(example, value)


text = st.text(st.characters(codec="utf-8"), max_size=20)
u64 = st.integers(0, 2**64 - 1)
pages = st.integers(0, 1 << 30).map(lambda n: n << 12)
ranges = st.tuples(pages, st.integers(1, 1 << 20)).map(lambda t: Range.of_size(t[0], t[1] << 12))
systems = st.builds(
    SystemFacts,
    release=text,
    cpu_model=text,
    cpu_flags=st.frozensets(text),
    la57=st.booleans(),
    memory_map=st.just(FACTS.system.memory_map),
    window=ranges,
    low=ranges,
    gate_address=pages,
    elf_headers_size=st.just(4096),
    loops_per_jiffy=u64,
)
departures = st.builds(
    Departure,
    lineage=st.builds(Lineage, id=text, base=text),
    written=st.lists(st.builds(Written, device=text, counts=st.lists(u64, max_size=2).map(tuple))).map(tuple),
)
facts = st.builds(
    ImageFacts,
    kind=st.sampled_from(Kind),
    system=systems,
    gate=st.just(FACTS.gate),
    kept_head=pages,
    saved_at=st.floats(0, 1e12),
    file_systems=st.just(FACTS.file_systems),
    departure=st.none() | departures,
    hook=st.none() | st.just(FACTS.hook),
    dump_level=st.none() | st.integers(0, 31),
)
reports = st.builds(
    Report,
    reason=text,
    log=st.lists(text, max_size=3).map(tuple),
    boot_seconds=st.floats(0, 1e9),
    vmcoreinfo=st.none() | st.tuples(st.integers(1, 2**52 - 1), st.integers(0, 1 << 20)),
    seed=st.just(b"") | st.binary(min_size=32, max_size=32),
    status=st.none() | st.integers(-64, 255),
    output=text,
    cut=u64,
    resident=st.booleans(),
    saved=st.none() | st.just(REPORT.saved),
    stamps=st.none() | st.just(REPORT.stamps),
)
assignments = st.builds(
    Assignment,
    job=st.just(NoJob()) | st.just(ShellJob()) | st.builds(CommandJob, st.lists(text).map(tuple), st.booleans()),
    gate=pages,
    time_limit=st.floats(0, 1e9),
    watchdog=st.integers(0, 1000),
    seed=st.just(b"") | st.binary(min_size=32, max_size=32),
)


@given(st.one_of(facts, reports, assignments, departures))
def test_anything_that_is_sent_comes_back(value: Any) -> None:
    assert read(value, sent(value)) == value


def test_the_version_of_the_facts_comes_first() -> None:
    with pytest.raises(FormatError, match="the image's facts are of version 99, this kjump knows version 1"):
        ImageFacts.from_json(Record({"facts_version": 99}, "the image's facts"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("system", "window"), [0x1000, 0x1000]),
        (("system", "window"), [0x1001, 0x3000]),
        (("system", "window"), [0x3000, 0x1000]),
        (("system", "low"), [0, 1 << 53]),
        (("system", "elf_headers_size"), 1 << 40),
        (("system", "memory_map"), [[5, 4, 1]]),
        (("system", "memory_map"), [[0, 1, 1]] * 5000),
        (("system", "memory_map"), [[0, 1]]),
        (("system", "release"), "x" * 5000),
        (("gate", "mailbox"), 0x1001),
        (("gate", "mailbox"), 1 << 52),
        (("gate", "cookie"), "00"),
        (("kept_head",), 1 << 52),
        (("hook", "program"), "no base64"),
        (("hook", "timeout"), -1),
        (("dump_level",), 32),
        (("kind",), "portrait"),
    ],
)
def test_facts_that_cannot_be(path: tuple[str, ...], value: object) -> None:
    refused(FACTS, changed(sent(FACTS), path, value))


@pytest.mark.parametrize("damaged", [{"seed": "00"}, {"saved": {}}, {"boot_seconds": "1"}, {"vmcoreinfo": [1]}])
def test_a_damaged_report_is_no_report(damaged: JsonObject) -> None:
    outcome, report = received(lambda: (Outcome.DONE, damaged))
    assert outcome is Outcome.NONE
    assert report == Report(reason=report.reason) and "the second kernel's report: " in report.reason


def test_a_report_says_only_what_there_is_to_say() -> None:
    assert Report().to_json() == {}
    assert Report(status=0, reason="x").to_json() == {"status": 0, "reason": "x"}


def test_jobs_are_called_by_name() -> None:
    assert job_called("command", ("a",), background=True) == CommandJob(("a",), True)
    assert job_called("none", ()) == NoJob()
    with pytest.raises(UsageError, match="there is no job called dance; there are command, none, peer, shell"):
        job_called("dance", ())


@pytest.mark.parametrize(
    ("assignment", "why"),
    [
        (Assignment(CommandJob(("\udcff",))), "argv is not valid Unicode"),
        (Assignment(gate=1 << 60), "gate is"),
        (Assignment(time_limit=float("inf")), "time_limit is"),
    ],
)
def test_what_the_other_side_would_refuse_is_refused_before_the_jump(assignment: Assignment, why: str) -> None:
    with pytest.raises(FormatError, match=f"the job: {why}"):
        assignment.encode()
