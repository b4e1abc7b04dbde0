"""`kjump`, and `python -m kjump`."""

from __future__ import annotations

import os
import sys

from kjump import precompiled
from kjump.peers import FOLDER


def main() -> None:
    """Run the command line, and end with its exit status."""
    precompiled.start()
    if sys.argv[1:2] == ["hibernate"] and FOLDER.exists():
        from kjump.peers import prefetch

        prefetch.begun()  # other CPUs have something to do from now on, and this one has all that follows to import
    from kjump import cli

    try:
        cli.main()
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            raise end from None
        # Nothing is left to be done: Python would only take apart what it has built, which takes a tenth of its start.
        os._exit(end.code)


if __name__ == "__main__":
    main()
