"""The interface for scripts: what it names is there, and what docs/api.md shows works."""

import ast
import importlib
import inspect
import pydoc
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import kjump

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/api.md").read_text(), re.DOTALL | re.MULTILINE)
TO_RUN = [block for block in BLOCKS if not block.startswith("# as root")]
TO_COMPARE = [block for block in BLOCKS if block.startswith("# as root")]

sys.path.insert(0, str(ROOT / "tests/unit"))


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tinykernel = importlib.import_module("tinykernel")
    tinykernel.write_vmcore(tmp_path / "vmcore")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in TO_RUN:
        exec(compile(block, "docs/api.md", "exec"), names)
    assert (tmp_path / "small.kdump").read_bytes().startswith(b"KDUMP")
    assert len(TO_RUN) >= 7


@pytest.mark.parametrize("block", TO_COMPARE)
def test_the_other_examples_fit_the_signatures(block: str) -> None:
    calls = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    compared = 0
    for call in calls:
        if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "kjump":
            signature = inspect.signature(getattr(kjump, call.func.attr))
            signature.bind(*call.args, **{str(k.arg): k.value for k in call.keywords})
            compared += 1
    assert compared >= 3


@pytest.mark.parametrize("name", kjump.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    found = getattr(kjump, name)
    assert inspect.getdoc(found)
    documented = set(re.findall(r"`(\w+)", str(kjump.__doc__)))
    assert name in documented, f"the docstring of kjump does not mention {name}"


def test_type_checkers_are_told_the_same() -> None:
    tree = ast.parse(Path(kjump.__file__).read_text())
    told = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("kjump."):
            for alias in node.names:
                own = alias.asname or alias.name
                told[own] = node.module if own == alias.name else f"{node.module}:{alias.name}"
    assert told == kjump._HOMES
    assert sorted(kjump.__all__) == sorted(kjump._HOMES)


def test_no_name_hides_a_module() -> None:
    inside = {path.stem for path in Path(kjump.__file__).parent.iterdir() if not path.name.startswith("__")}
    assert not inside & set(kjump.__all__)


def test_import_alone_imports_nothing() -> None:
    script = "import sys, kjump; print([name for name in sys.modules if name.startswith('kjump.')])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        kjump.nothing_of_the_kind  # noqa: B018


def test_the_version_is_the_installed_package_s() -> None:
    assert kjump.__version__ == metadata.version("kjump")
    build = (ROOT / "meson.build").read_text()
    assert f"version: '{kjump.__version__}'" in build
    for other in ("pyproject.toml", "src/kjump/__init__.py"):
        assert kjump.__version__ not in (ROOT / other).read_text()


def test_help_reads_as_documentation() -> None:
    text = pydoc.plain(pydoc.render_doc(kjump))
    assert "What scripts may rely on" in text
    for name in kjump.__all__:
        assert name in text
    assert "_HOMES" not in text
