"""The documents: links lead somewhere, paths exist, commands are such as kjump takes; messages name no A, B, C."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import kjump.cli
from kjump.cli.examples import walk

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md")])
HISTORY = {"CHANGELOG.md", "RESULTS.md"}
"""Pages that speak of what was, so that what they name may be gone."""
_PATH = re.compile(r"(?<![\w./-])((?:src|tests|docs|bench|build-aux|examples)/[\w./-]*\w)")
_INSIDE = re.compile(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.(?:py|c|h|S))`")
_NAMES = re.compile(r"(?<![\w&/-])[ABC](?![\w/+-]| (?:file|function|library))")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", heading.lower().replace("`", ""))
        found.add(words.strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link} is not a heading there"


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in HISTORY], ids=lambda p: p.name)
def test_what_pages_name_exists(page: Path) -> None:
    text = page.read_text()
    for name in _PATH.findall(text):
        assert (ROOT / name).exists() or list(ROOT.glob(f"{name}*")) or "NAME" in name, f"{page.name}: {name}"
    for name in _INSIDE.findall(text):
        places = [ROOT / name, ROOT / "src/kjump" / name, ROOT / "src/core" / name]
        if not name.startswith(("contrib/", "arch/", "mm/", "lib/", "include/", "kernel/", "tools/")):
            assert any(p.exists() for p in places), f"{page.name}: {name}"


def test_every_page_can_be_found_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(([^)#\s]+)", (ROOT / "README.md").read_text()))
    assert {str(p.relative_to(ROOT)) for p in PAGES} - linked == {"README.md"}


def in_blocks(page: Path) -> Iterator[str]:
    """Go through the kjump commands in a page's blocks of code."""
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"^```(?:console)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [line.strip() for line in text.splitlines() if line.startswith("    ")]
    for line in lines:
        found = re.match(r"(?:[$#] )?(?:sudo )?(?:\.venv/bin/)?(kjump [a-z].*)", line)
        if found:
            yield found[1]


def between_quotes(page: Path) -> Iterator[str]:
    """Go through the kjump commands that a page mentions between backquotes."""
    outside = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for found in re.finditer(r"`(kjump [a-z][^`]*)`", outside):
        yield " ".join(found[1].split())


def words_of(line: str) -> list[str]:
    """Return the words of a command, less the explanation behind it and what another program does with it."""
    line = re.split(r"\s{2,}(?=\S)|\s#\s|\s\|\s|\s>\s|\s&&\s", line)[0]
    return shlex.split(line)[1:]


PRESENT = [page for page in PAGES if page.name not in HISTORY]
COMMANDS = sorted({c for page in PRESENT for c in in_blocks(page)})
MENTIONS = sorted({c for page in PRESENT for c in between_quotes(page)})


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The verbs that were reached; nothing is done, and files need not exist."""
    found: list[str] = []
    monkeypatch.setattr(click.Path, "convert", lambda self, value, *_: self.coerce_path_result(value))
    monkeypatch.setattr(click.Command, "invoke", lambda self, context: found.append(str(self.name)))
    return found


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_taken(line: str, reached: list[str]) -> None:
    kjump.cli.kjump.main(words_of(line), prog_name="kjump", standalone_mode=False)
    assert reached


@pytest.mark.parametrize("line", MENTIONS)
def test_commands_that_are_mentioned_are_verbs_with_their_options(line: str) -> None:
    words = words_of(line)
    tree = dict(walk(kjump.cli.kjump))
    count = max(count for count in range(len(words) + 1) if " ".join(words[:count]) in tree)
    assert count, f"{line}: there is no such verb"
    verb = " ".join(words[:count])
    known = {name for name, command in tree.items() if name == verb or name.startswith(f"{verb} ")}
    options = {o for name in known for p in tree[name].params for o in p.opts} | {"--help"}
    for word in words[count : words.index("--") if "--" in words else None]:
        assert not word.startswith("--") or word in options, f"{line}: {word} is no option of {verb}"


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 30 and len(MENTIONS) > 20


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """Go through what a file says to people: texts of errors, and what is printed or told."""
    sayers = {"tell", "step", "echo", "line", "fail", "print", "secho"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name.endswith("Error") or name in sayers or name == "option":
                for part in ast.walk(node):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield part.lineno, part.value


SOURCES = [
    path
    for path in sorted((ROOT / "src/kjump").rglob("*.py"))
    if path.relative_to(ROOT / "src/kjump").parts[0] not in ("lab", "dump", "gates")
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src/kjump")))
def test_messages_name_no_letters(path: Path) -> None:
    for line, text in messages(path):
        assert not _NAMES.search(text), f"{path.name}:{line}: {text!r} says A, B or C: this system, the second kernel"
