"""`kjump`, and `python -m kjump`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line, and end with its exit status."""
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
