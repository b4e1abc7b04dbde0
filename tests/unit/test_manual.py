"""Manual pages and completions, as `pip install` has put them beside this Python."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import click
import pytest

import kjump.cli
from kjump.cli.examples import examples_of, walk

SHARE = Path(sys.prefix, "share")
TREE = dict(walk(kjump.cli.kjump))


def page_of(verb: str) -> Path:
    return SHARE / "man/man1" / f"{'-'.join(['kjump', *verb.split()])}.1"


@pytest.mark.parametrize("verb", TREE)
def test_every_verb_has_a_manual_page(verb: str) -> None:
    text = page_of(verb).read_text()
    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS"):
        assert f".SH {heading}\n" in text
    assert f"kjump {metadata.version('kjump')}" in text.splitlines()[0]
    for line in examples_of(verb) if verb else ():
        assert line.replace("\\", "\\e").replace("-", "\\-") in text
    for option in TREE[verb].params:
        if isinstance(option, click.Option) and not option.hidden:
            assert option.opts[0].replace("-", "\\-") in text
            assert option.help, f"`kjump {verb}` does not say what {option.opts[0]} is for"


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed: apt install groff")
def test_troff_takes_all_pages() -> None:
    pages = [str(page_of(verb)) for verb in TREE]
    done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-z", *pages], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "place",
    ["bash-completion/completions/kjump", "zsh/site-functions/_kjump", "fish/vendor_completions.d/kjump.fish"],
)
def test_completions_are_where_shells_look(place: str) -> None:
    assert "_KJUMP_COMPLETE" in (SHARE / place).read_text()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["kjump", "hib"], "plain,hibernate"),
        (["kjump", "dump", "con"], "plain,convert"),
        (["kjump", "rollback", "--of"], "plain,--offset"),
    ],
)
def test_bash_completes(words: list[str], expected: str) -> None:
    """As the function that the shell has loaded asks for it."""
    environment = os.environ | {
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
        "_KJUMP_COMPLETE": "bash_complete",
    }
    program = [sys.executable, "-c", "import sys; sys.argv[0] = 'kjump'; from kjump.__main__ import main; main()"]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert expected in done.stdout.splitlines()
