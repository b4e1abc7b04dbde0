"""Results of demonstrations: good only with checks that all hold, and the JSON that programs read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kjump.lab.big_image import BigImageDemo
from kjump.lab.calling import CallDemo
from kjump.lab.checks import Checked
from kjump.lab.hibernation import HibernationDemo
from kjump.lab.rollback import RollbackDemo
from kjump.lab.snapshot import SnapshotDemo, TakenSnapshot
from kjump.lab.switching import SwitchingDemo
from kjump.lab.swsusp import SwsuspRefusal

CHECKS = {"file": True, "disk": True}
HIBERNATION = HibernationDemo("6.12.1", 768, 128, 100, 200, {"save": 1.5}, CHECKS)
RESULTS: dict[str, tuple[Checked, dict[str, object]]] = {
    "hibernation": (
        HIBERNATION,
        {"memory_bytes": 768, "window_bytes": 128, "image_bytes": 100, "saved_bytes": 200, "phases": {"save": 1.5}},
    ),
    "big image": (
        BigImageDemo(
            "6.12.1",
            768,
            500,
            0.65,
            SwsuspRefusal("ENOMEM", ("5 pages",)),
            90,
            128,
            700,
            650,
            {},
            {"a": 1},
            CHECKS,
        ),
        {
            "memory_bytes": 768,
            "filled_bytes": 500,
            "share": 0.65,
            "swsusp": {"errno": "ENOMEM", "log": ["5 pages"]},
            "available_bytes": 90,
            "window_bytes": 128,
            "saved_bytes": 700,
            "image_bytes": 650,
            "phases": {},
            "report": {"a": 1},
        },
    ),
    "calls": (
        CallDemo("6.12.1", 512, 12, {"min": 0.1}, CHECKS),
        {"memory_bytes": 512, "calls": 12, "latency": {"min": 0.1}},
    ),
    "roll-back": (
        RollbackDemo("6.12.1", 768, "refused", 1.25, [2.5], [0.1], CHECKS),
        {"memory_bytes": 768, "refusal": "refused", "pause": 1.25, "seconds": [2.5], "clock_errors": [0.1]},
    ),
    "snapshot": (
        SnapshotDemo(
            "6.1.1", 768, [TakenSnapshot(1.25, 1.3, {"save": 1}, 100, 200, (5, 6), {"kjump": 6})], ["no drgn"], CHECKS
        ),
        {
            "memory_bytes": 768,
            "snapshots": [
                {
                    "pause": 1.25,
                    "process_pause": 1.3,
                    "phases": {"save": 1},
                    "image_bytes": 100,
                    "kept_bytes": 200,
                    "values": [5, 6],
                    "seen": {"kjump": 6},
                    "exact": True,
                }
            ],
            "left_out": ["no drgn"],
        },
    ),
    "switching": (
        SwitchingDemo("6.12.1", "6.1.1", 640, 2.5, 600, 130, None, {"one_peer": {"min": 0.4}}, CHECKS),
        {
            "peer_kernel": "6.1.1",
            "memory_bytes": 640,
            "boot_seconds": 2.5,
            "digested_bytes": 600,
            "given_back_bytes": 130,
            "free_slope": None,
            "times": {"one_peer": {"min": 0.4}},
        },
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_the_json_of_a_demonstration(name: str) -> None:
    result, fields = RESULTS[name]
    kernel = "6.1.1" if name == "snapshot" else "6.12.1"
    assert json.loads(json.dumps(result.to_json())) == {"ok": True, "kernel": kernel, "checks": CHECKS, **fields}


def test_a_demonstration_is_as_good_as_its_checks() -> None:
    assert HIBERNATION.ok and HIBERNATION.failed == []
    assert not replace(HIBERNATION, checks={}).ok
    spoiled = replace(HIBERNATION, checks={**CHECKS, "pipe": False})
    assert (spoiled.ok, spoiled.failed, spoiled.to_json()["ok"]) == (False, ["pipe"], False)
