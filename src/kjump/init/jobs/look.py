"""Looking at a parked A from B: `kjump peer info|dump|drgn`, for a shell or a command there.

What is asked is A itself, through /proc/vmcore and the list of pages that the jump swapped, which the mailbox leads
to. `info` works in every initramfs, `dump` in one built with --with-dump, `drgn` where somebody has put drgn there.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Sequence

from kjump.dump.summary import Summary, summarize
from kjump.errors import FormatError, HostError, KjumpError, UsageError
from kjump.gates import GATE_SIZE, Gate
from kjump.hibernate.jobs import Assignment
from kjump.host import root
from kjump.image.dump_source import ParkedSource
from kjump.image.save import open_parked
from kjump.image.threads import threads_to_save
from kjump.initramfs.contents import JOB_NAME
from kjump.kexec import mailbox
from kjump.kexec.physical import read_physical

USAGE = """usage: kjump peer info [--json]
       kjump peer dump [--dump-level 0-31] [--format image|kdump|elf] [--force] DST
       kjump peer drgn [VMLINUX [SCRIPT]]"""
_LEVEL = 31


def open_source() -> ParkedSource:
    """Open the parked A; HostError when this is not a second kernel that a job was given to."""
    try:
        gate_at = Assignment.decode(root.at("/" + JOB_NAME).read_bytes()).gate
    except (OSError, FormatError):
        raise HostError("there is no parked system here: this is for a second kernel that kjump started") from None
    gate = Gate.unpack(read_physical(gate_at, GATE_SIZE))
    return ParkedSource(open_parked(mailbox.PeerMailbox.at_physical(gate.mailbox, gate.cookie).head))


def info(arguments: Sequence[str]) -> str:
    """Return what A is, and what its pages are; as JSON with --json."""
    if list(arguments) not in ([], ["--json"]):
        raise UsageError(USAGE)
    with open_source() as source:
        found = summarize(source, zeros=False, threads=1)
    return json.dumps(found.as_json()) if arguments else _describe(found)


def _describe(found: Summary) -> str:
    lines = [f"{name:14}{value}" for name, value in found.lines().items()]
    lines += [f"{name:24}{count:>10} pages  {count >> 8:>7} MiB" for name, count in found.classes.items()]
    return "\n".join([*lines, f"{'all':24}{found.total:>10} pages  {found.total >> 8:>7} MiB", *found.warnings])


def dump(arguments: Sequence[str]) -> str:
    """Write A's memory to DST: a file on a file system that is mounted here, a device (--force), or `-`."""
    if importlib.util.find_spec("kjump._dump") is None:
        raise HostError("this initramfs cannot write dumps: build it with `kjump initramfs build --with-dump`")
    from kjump.dump.create import Format, Request
    from kjump.dump.create import dump as write

    options, destination = _dump_options(arguments)
    request = Request(
        (destination,),
        level=int(options["--dump-level"]),
        format=Format(options["--format"]),
        threads=threads_to_save(os.cpu_count() or 1, 1),
        force="--force" in options,
    )
    with open_source() as source:
        report = write(source, request)
    os.sync()
    told = f"{report.kept_pages} of {report.source_pages} pages take {report.size} bytes in {destination}"
    return "\n".join([told, *report.warnings])


def _dump_options(arguments: Sequence[str]) -> tuple[dict[str, str], str]:
    options = {"--dump-level": str(_LEVEL), "--format": "image"}
    words, left = [], ["--dump-level" if a == "--level" else a for a in arguments]
    while left:
        word = left.pop(0)
        if word == "--force":
            options[word] = ""
        elif word in options and left:
            options[word] = left.pop(0)
        else:
            words.append(word)
    if (
        len(words) != 1
        or not options["--dump-level"].isdecimal()
        or options["--format"] not in ("image", "kdump", "elf")
    ):
        raise UsageError(USAGE)
    return options, words[0]


def drgn(arguments: Sequence[str]) -> str:
    """Open A in drgn, with the debugging information in VMLINUX; run SCRIPT, or its prompt."""
    if importlib.util.find_spec("drgn") is None:
        raise HostError(
            "drgn is not in this initramfs, and its debugging information seldom fits beside it: save the first "
            "system with `kjump peer dump`, or there with `kjump snapshot --dump-level`, and open that with drgn "
            "elsewhere"
        )
    import runpy

    from kjump.dump.drgn import program

    prog = program(open_source(), *arguments[:1])
    if len(arguments) > 1:
        runpy.run_path(arguments[1], init_globals={"prog": prog}, run_name="__main__")
    else:
        from drgn.cli import run_interactive

        run_interactive(prog)
    return ""


VERBS = {"info": info, "dump": dump, "drgn": drgn}


def look(arguments: Sequence[str]) -> str:
    """Do `arguments`, the words after `kjump peer`; return what is to be printed. UsageError when they are none."""
    if not arguments or arguments[0] not in VERBS:
        raise UsageError(USAGE)
    return VERBS[arguments[0]](arguments[1:])


def main(arguments: Sequence[str]) -> None:
    """Run as the command `kjump` of the initramfs."""
    try:
        if arguments[:1] != ["peer"]:
            raise UsageError(USAGE)
        print(look(arguments[1:]))
    except KjumpError as error:
        print(f"kjump: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except OSError as error:
        print(f"kjump: {error.filename or 'the system'}: {error.strerror}", file=sys.stderr)
        sys.exit(1)
