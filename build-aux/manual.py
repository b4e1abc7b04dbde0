"""Write manual pages and completions from the definitions of the command line.

`manual.py names SOURCE` prints the names of the pages, `manual.py pages SOURCE VERSION FOLDER` writes them, and
`manual.py completions SOURCE FOLDER` writes a file for each of bash, zsh and fish. The build runs it.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import ShellComplete, get_completion_class
from stand_in import import_from

SHELLS = {"bash": "kjump", "zsh": "_kjump", "fish": "kjump.fish"}
_EXIT_STATUS = """\
.TP
.B 0
It was done.
.TP
.B 1
It failed; standard error says why in one sentence.
.TP
.B 2
The command line makes no sense.
.TP
.B 130
It was interrupted.
"""


def page_name(verb: str) -> str:
    """Return the name of the page of `verb`, as `kjump-dump-info`."""
    return "-".join(["kjump", *verb.split()])


def escaped(text: str) -> str:
    """Return `text` for troff, in one line; what stands in backquotes is set in bold."""
    line = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-")
    line = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", line)
    return f"\\&{line}" if line.startswith((".", "'")) else line


def context_of(verb: str, tree: dict[str, click.Command]) -> click.Context:
    """Return what click knows about the call of `verb`."""
    context = click.Context(tree[""], info_name="kjump", help_option_names=["-h", "--help"])
    words = verb.split()
    for count in range(1, len(words) + 1):
        context = click.Context(tree[" ".join(words[:count])], info_name=words[count - 1], parent=context)
    return context


def sections(verb: str, tree: dict[str, click.Command], examples: tuple[str, ...]) -> Iterator[str]:
    """Go through the sections of a page."""
    command, context = tree[verb], context_of(verb, tree)
    pieces = " ".join(escaped(piece) for piece in command.collect_usage_pieces(context))
    yield f".SH NAME\n{page_name(verb)} \\- {escaped(command.get_short_help_str(200).rstrip('.'))}\n"
    yield f".SH SYNOPSIS\n.B {escaped(context.command_path)}\n{pieces}\n"
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    yield ".SH DESCRIPTION\n" + "\n.PP\n".join(map(escaped, paragraphs)) + "\n"
    options = (p for p in command.get_params(context) if isinstance(p, click.Option))
    records = [record for option in options if (record := option.get_help_record(context))]
    yield ".SH OPTIONS\n" + "".join(f".TP\n.B {escaped(names)}\n{escaped(text)}\n" for names, text in records)
    inside = [name for name in tree if name and name.rpartition(" ")[0] == verb and name != verb]
    if inside:
        entries = (f".TP\n.BR {page_name(v)} (1)\n{escaped(tree[v].get_short_help_str(200))}\n" for v in inside)
        yield ".SH COMMANDS\n" + "".join(entries)
    if examples:
        lines = "\n".join(f"\\&{line}".replace("\\", "\\e").replace("\\e&", "\\&") for line in examples)
        yield ".SH EXAMPLES\n.nf\n" + lines.replace("-", "\\-") + "\n.fi\n"
    yield f".SH EXIT STATUS\n{_EXIT_STATUS}"
    above = page_name(verb.rpartition(" ")[0])
    others = f".BR {above} (1)" if verb else ".BR kexec (8),\n.BR makedumpfile (8),\n.BR crash (8)"
    yield f".SH SEE ALSO\n{others}\n"


def pages(version: str) -> Iterator[tuple[str, str]]:
    """Go through all pages: name and contents."""
    cli, known = importlib.import_module("kjump.cli"), importlib.import_module("kjump.cli.examples")
    tree = dict(known.walk(cli.kjump))
    for verb in tree:
        head = f'.TH {page_name(verb).upper()} 1 "" "kjump {version}" "kjump"\n'
        text = head + "".join(sections(verb, tree, known.examples_of(verb) if verb else ()))
        yield f"{page_name(verb)}.1", text


def completions() -> Iterator[tuple[str, str]]:
    """Go through the files that shells read: name and contents."""
    cli = importlib.import_module("kjump.cli")
    for shell, name in SHELLS.items():
        kind = get_completion_class(shell)
        assert kind is not None
        # Of the base class: bash's asks the bash of this machine for its version.
        yield name, ShellComplete.source(kind(cli.kjump, {}, "kjump", "_KJUMP_COMPLETE"))


def main() -> None:
    """Do what the first argument says."""
    what, source, *rest = sys.argv[1:]
    import_from(source)
    if what == "names":
        print("\n".join(name for name, _ in pages("")))
        return
    *version, folder = rest
    for name, text in pages(*version) if what == "pages" else completions():
        Path(folder, name).write_text(text)


if __name__ == "__main__":
    main()
