"""Rules for C and assembly that no tool checks (CONTRIBUTING.md)."""

import re
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "src"
HEADERS = {
    "core/core.h": ("core_", "crew_", "layout_", "extents_", "mapper_", "frame_"),
    "dumpcore/dump.h": ("dump_", "codec_"),
    "shared/shared.h": ("shared_",),
}
ASSEMBLY = sorted(SOURCES.rglob("*.S"))
_EXPORTED = re.compile(r"^(?:extern |static inline )?[\w ]+?[ *]\**(\w+(?:, \**\w+)*)(?:\(|;)", re.MULTILINE)


@pytest.mark.parametrize("header", HEADERS)
def test_what_others_may_call_has_a_prefix(header: str) -> None:
    text = re.sub(r"/\*.*?\*/|^#.*?[^\\]$", "", (SOURCES / header).read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}", "{}", text)  # bodies and members
    lines = (
        line for line in text.splitlines() if not line.startswith(("struct", "typedef", "_Static_assert", "#", " "))
    )
    names = [name.strip(" *") for found in _EXPORTED.findall("\n".join(lines)) for name in found.split(",")]
    assert len(names) >= 5
    assert [name for name in names if not name.startswith(HEADERS[header])] == []


@pytest.mark.parametrize("path", ASSEMBLY, ids=lambda p: p.name)
def test_labels_have_names(path: Path) -> None:
    assert re.findall(r"^\d+:", path.read_text(), re.MULTILINE) == []


def test_there_is_assembly() -> None:
    assert len(ASSEMBLY) >= 8
