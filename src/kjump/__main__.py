"""`kjump`, and `python -m kjump`."""

from __future__ import annotations

from kjump import precompiled


def main() -> None:
    """Run the command line."""
    precompiled.start()
    from kjump import cli

    cli.main()


if __name__ == "__main__":
    main()
