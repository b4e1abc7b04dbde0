"""`kjump switch` inside a resident peer: back to A, and on from there when A switches here again."""

from __future__ import annotations

import sys
from pathlib import Path

from kjump.errors import FormatError, KjumpError, UsageError
from kjump.formats.record import JsonObject, Record
from kjump.hibernate.jobs import WHAT, Assignment, NoJob
from kjump.hibernate.report import Report
from kjump.init.jobs import look
from kjump.init.peer_link import Answer, Residence
from kjump.kexec.mailbox import Outcome


def switch_home(message: bytes) -> bytes:
    """Go to A with `message`; return the message that A sends when it switches here again.

    A job that A has for this kernel meanwhile is refused: nobody but us is there to do it. KjumpError when this kernel
    is no peer, or refuses to leave.
    """
    residence = Residence.here()
    residence.open()
    order = residence.away(Answer(Outcome.DONE, message=message))
    while reason := _refusal(order.content):
        order = residence.away(Answer(Outcome.FAILED, Report(reason=reason)))
    return order.message


def _refusal(order: JsonObject) -> str:
    """Return why an order is refused while a program waits here; empty when there is no job in it."""
    try:
        job = Assignment.from_json(Record(order, WHAT)).job
    except FormatError as error:
        return str(error)
    if isinstance(job, NoJob):
        return ""
    return f"the peer cannot do the job `{job.NAME}` while a program in it waits: switch there without one first"


def main() -> None:
    """Run as a command in a small initramfs, which has no other: `switch ...`, `peer ...`."""
    if sys.argv[1:2] == ["peer"]:
        look.main(sys.argv[1:])
        return
    try:
        send, receive = _options(sys.argv[1:])
        received = switch_home(Path(send).read_bytes() if send else b"")
        if receive:
            Path(receive).write_bytes(received)
        elif received:
            sys.stdout.buffer.write(received)
    except KjumpError as error:
        print(f"kjump: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except OSError as error:
        print(f"kjump: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(1)


def _options(arguments: list[str]) -> tuple[str, str]:
    found = {"--send": "", "--receive": ""}
    words = iter(arguments[1:])
    if arguments[:1] != ["switch"]:
        raise UsageError("a second kernel knows two verbs: kjump peer, and kjump switch [--send FILE] [--receive FILE]")
    for word in words:
        if word not in found:
            raise UsageError(f"unknown option {word}: kjump switch [--send FILE] [--receive FILE]")
        found[word] = next(words, "")
        if not found[word]:
            raise UsageError(f"{word} needs a file: kjump switch [--send FILE] [--receive FILE]")
    return found["--send"], found["--receive"]


if __name__ == "__main__":
    main()
