"""The fault campaign's bookkeeping: a fault that is not met as it should be is never called ok."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kjump.cli.demo import demo
from kjump.errors import LabError
from kjump.lab import requirements
from kjump.lab.campaign import bit_flips, catalogue, checkpoints, power_faults
from kjump.lab.campaign.campaign import Campaign, CampaignSize, ProvokedFault, run
from kjump.lab.campaign.checkpoints import Checkpoint, PowerLoss
from kjump.lab.machine import kernel_source
from kjump.ranges import Range


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return Campaign(tmp_path, version="6.12", seed=1, size=CampaignSize(), jobs=2, tell=lambda _: None)


def raising(error: Exception) -> Callable[[Campaign], str]:
    def provoke(_: Campaign) -> str:
        raise error

    return provoke


def test_every_fault_has_a_name_of_its_own_and_a_phrase_to_look_for() -> None:
    assert len({fault.name for fault in catalogue.FAULTS}) == len(catalogue.FAULTS) == 29
    assert all(fault.expected and fault.phrase for fault in catalogue.FAULTS)


def test_a_line_of_json_for_each_fault_as_it_comes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = []

    def seen(_: Campaign) -> str:
        before.append(capsys.readouterr().out)
        return "too small"

    monkeypatch.setattr(requirements, "check", lambda **_: None)
    monkeypatch.setattr(kernel_source, "build", lambda *_, **__: None)
    faults = [ProvokedFault(name, "refused", name, seen) for name in ("small", "large")]
    monkeypatch.setattr(catalogue, "FAULTS", faults)
    with pytest.raises(SystemExit) as ended:
        demo.main(["faults", "--json", "--seed", "7"])
    printed = [*before[1:], capsys.readouterr().out]
    lines = [json.loads(text) for text in printed]
    assert [(line["name"], line["expected"], line["seen"], line["ok"]) for line in lines] == [
        ("small", "refused", "too small", True),
        ("large", "refused", "too small", False),
    ]
    assert all(text.count("\n") == 1 for text in printed)
    assert [line["seed"] for line in lines] == [7, 7]
    assert ended.value.code == 1


def test_what_is_not_as_expected_is_not_ok(campaign: Campaign) -> None:
    cases = {
        "good": lambda _: "it was refused: too small",
        "other": lambda _: "it went well",
        "worse": raising(LabError("A was harmed: too small")),
        "surprise": raising(ZeroDivisionError("too small")),
        "last": lambda _: "too small",
    }
    faults = [ProvokedFault(name, "refused", "too small", provoke) for name, provoke in cases.items()]
    found = {finding.name: finding for finding in run(campaign, faults)}
    assert {name: finding.ok for name, finding in found.items()} == {
        "good": True,
        "other": False,
        "worse": False,
        "surprise": False,
        "last": True,
    }
    assert found["worse"].seen == "A was harmed: too small"
    assert found["surprise"].seen == "ZeroDivisionError: too small"
    assert [finding.name for finding in run(campaign, faults, ["last", "good"])] == ["good", "last"]
    with pytest.raises(LabError, match="there is no fault nothing; there are good, other"):
        list(run(campaign, faults, ["nothing"]))


def point(folder: Path, name: str = "saving") -> Checkpoint:
    return Checkpoint(folder / name, 8.0)


def test_one_bad_loss_of_power_spoils_the_fault(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def lose_power(_: object, point: Checkpoint, moment: float, __: Path) -> PowerLoss:
        return PowerLoss(point.name, moment, "writing", "ordinary boot", moment != 3.0)

    monkeypatch.setattr(checkpoints, "lose_power", lose_power)
    campaign.__dict__["prepared"] = None
    saving = point(tmp_path)
    assert "; 0 bad" in power_faults.lose_power(campaign, [(saving, 1.0), (saving, 2.0)])
    assert "; 1 bad" in power_faults.lose_power(campaign, [(saving, 1.0), (saving, 3.0)])
    runs = [run for run in campaign.runs if isinstance(run, PowerLoss)]
    assert [(run.point, run.moment) for run in runs] == [("saving", at) for at in (1.0, 2.0, 1.0, 3.0)]


def test_moments_and_bits_are_spread_and_can_be_had_again(tmp_path: Path) -> None:
    saving = point(tmp_path)
    moments = list(power_faults.moments_after(saving, 8.0, 40, random.Random(5)))
    assert moments == list(power_faults.moments_after(saving, 8.0, 40, random.Random(5)))
    assert all(where == saving and i * 0.2 <= at <= (i + 1) * 0.2 for i, (where, at) in enumerate(moments))
    bits = list(bit_flips._spread(Range(1000, 1400), 40, random.Random(5)))
    assert all(1000 + i * 10 <= at < 1010 + i * 10 and 0 <= bit < 8 for i, (at, bit) in enumerate(bits))


def test_logs_of_each_fault_stay_and_disks_do_not(campaign: Campaign, tmp_path: Path) -> None:
    def provoke(campaign: Campaign) -> str:
        folder = campaign.scratch / "saved-1"
        folder.mkdir()
        (folder / "console.log").write_text("Kernel panic")
        (folder / "target.img").write_bytes(bytes(4096))
        return "nothing"

    (finding,) = run(campaign, [ProvokedFault("bad", "refused", "too small", provoke)])
    assert not finding.ok
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "bad/saved-1/console.log"]


def test_failed_faults_leave_their_logs_in_a_folder_that_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def provoke(campaign: Campaign) -> str:
        (campaign.scratch / "console.log").write_text("Kernel panic")
        return "nothing"

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(requirements, "check", lambda **_: None)
    monkeypatch.setattr(kernel_source, "build", lambda *_, **__: None)
    monkeypatch.setattr(kernel_source, "build", lambda *_, **__: None)
    monkeypatch.setattr(catalogue, "FAULTS", [ProvokedFault("bad", "refused", "too small", provoke)])
    with pytest.raises(SystemExit) as ended:
        demo.main(["faults", "--json"])
    assert ended.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    (log,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert log.read_text() == "Kernel panic"
    assert last == f"console logs: {log.parent.parent}"
