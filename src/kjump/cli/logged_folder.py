"""The folder of a demonstration, whose logs are kept when something failed."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType

import click

from kjump.errors import KjumpError


class LoggedFolder:
    """A context manager for the folder `keep`, which is made if necessary, or a temporary folder.

    A temporary folder is removed at the end, but its console logs are kept when the demonstration ended with an
    exception, or when `failed` was set because a check failed. Their path is in the error's message, or is printed.
    """

    def __init__(self, keep: Path | None) -> None:
        """Make the folder."""
        self.keep = keep
        self.folder = keep or Path(tempfile.mkdtemp(prefix="kjump-demo-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.failed = False

    def __enter__(self) -> LoggedFolder:
        """Nothing to do."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keep the logs if something failed; a KjumpError gets the path of their folder in its message."""
        logs = None
        if self.failed or isinstance(error, Exception):
            logs = self.keep or self._kept_logs()
        if not self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(error, KjumpError):
            error.args = (f"{error} (console logs: {logs})",)
        elif logs is not None:
            click.echo(f"console logs: {logs}", err=True)

    def _kept_logs(self) -> Path:
        """Copy the console logs in and below the folder to a new folder, and return its path."""
        kept = Path(tempfile.mkdtemp(prefix="kjump-logs-"))
        for log in self.folder.rglob("*.log"):
            copy = kept / log.relative_to(self.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log, copy)
        return kept
