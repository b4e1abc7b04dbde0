"""The fault campaign's bookkeeping: a fault that is not met as it should be is never called ok."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from kjump.cli.demo import demo
from kjump.errors import LabError
from kjump.lab.campaign import bit_flips, faults
from kjump.lab.campaign import interrupted as stories
from kjump.lab.campaign.faults import Campaign, Fault, Size
from kjump.ranges import Range


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return Campaign(tmp_path, version="6.12", seed=1, size=Size(), jobs=2, tell=lambda _: None)


def raising(error: Exception) -> Callable[[Campaign], str]:
    def provoke(_: Campaign) -> str:
        raise error

    return provoke


def test_every_fault_has_a_name_of_its_own_and_words_to_look_for() -> None:
    assert len({fault.name for fault in faults.FAULTS}) == len(faults.FAULTS)
    assert all(fault.expected and fault.words for fault in faults.FAULTS)


def test_a_line_of_json_for_each_fault_as_it_comes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = []

    def seen(_: Campaign) -> str:
        before.append(capsys.readouterr().out)
        return "too small"

    monkeypatch.setattr(faults, "FAULTS", [Fault(name, "refused", name, seen) for name in ("small", "large")])
    with pytest.raises(SystemExit) as ended:
        demo.main(["faults", "--json"])
    printed = [*before[1:], capsys.readouterr().out]
    lines = [json.loads(text) for text in printed]
    assert [(line["name"], line["expected"], line["seen"], line["ok"]) for line in lines] == [
        ("small", "refused", "too small", True),
        ("large", "refused", "too small", False),
    ]
    assert all(text.count("\n") == 1 for text in printed)
    assert ended.value.code == 1


def test_what_is_not_as_expected_is_not_ok(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {
        "good": lambda _: "it was refused: too small",
        "other": lambda _: "it went well",
        "worse": raising(LabError("A was harmed: too small")),
        "surprise": raising(ZeroDivisionError("too small")),
        "last": lambda _: "too small",
    }
    monkeypatch.setattr(faults, "FAULTS", [Fault(name, "refused", "too small", run) for name, run in cases.items()])
    found = {finding.name: finding for finding in faults.run(campaign)}
    assert {name: finding.ok for name, finding in found.items()} == {
        "good": True,
        "other": False,
        "worse": False,
        "surprise": False,
        "last": True,
    }
    assert found["worse"].seen == "A was harmed: too small"
    assert found["surprise"].seen == "ZeroDivisionError: too small"
    assert [finding.name for finding in faults.run(campaign, ["last", "good"])] == ["good", "last"]
    with pytest.raises(LabError, match="there is no fault nothing; there are good, other"):
        list(faults.run(campaign, ["nothing"]))


def test_one_bad_kill_spoils_the_fault(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(_: object, point: str, moment: float, __: Path) -> stories.Kill:
        return stories.Kill(point, moment, "writing", "ordinary boot", moment != 3.0)

    monkeypatch.setattr(faults.stories, "kill", kill)
    campaign.__dict__["story"] = None
    assert "; 0 bad" in faults._kills(campaign, [("saving", 1.0), ("saving", 2.0)])
    assert "; 1 bad" in faults._kills(campaign, [("saving", 1.0), ("saving", 3.0)])
    assert [run["moment"] for run in campaign.runs] == [1.0, 2.0, 1.0, 3.0]


def test_moments_and_bits_are_spread_and_can_be_had_again() -> None:
    moments = list(faults._moments("saving", 8.0, 40, random.Random(5)))
    assert moments == list(faults._moments("saving", 8.0, 40, random.Random(5)))
    assert all(point == "saving" and i * 0.2 <= at <= (i + 1) * 0.2 for i, (point, at) in enumerate(moments))
    bits = list(bit_flips._spread(Range(1000, 1400), 40, random.Random(5)))
    assert all(1000 + i * 10 <= at < 1010 + i * 10 and 0 <= bit < 8 for i, (at, bit) in enumerate(bits))
