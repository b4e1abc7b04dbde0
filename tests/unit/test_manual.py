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
        (["kjump", "hib"], "hibernate"),
        (["kjump", "dump", "con"], "convert"),
        (["kjump", "rollback", "--of"], "--offset"),
    ],
)
def test_bash_completes(words: list[str], expected: str, tmp_path: Path) -> None:
    """What the installed file makes of words that were begun."""
    program = tmp_path / "kjump"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m kjump "$@"\n')
    program.chmod(0o755)
    script = (
        f"source {SHARE}/bash-completion/completions/kjump; COMP_WORDS=({' '.join(words)}); "
        f"COMP_CWORD={len(words) - 1}; _kjump_completion kjump; echo ${{COMPREPLY[@]}}"
    )
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [expected], done.stderr
