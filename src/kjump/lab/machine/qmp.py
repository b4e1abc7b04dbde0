"""QMP, QEMU's own control channel, for callers that are not asynchronous."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import QMPClient, QMPError

from kjump.formats.record import Record

T = TypeVar("T")


class QmpConnection:
    """A QMP connection on an event loop in a thread of its own."""

    def __init__(self, path: Path) -> None:
        """Connect to the socket at `path`; QMPError when QEMU is not there."""
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._client = QMPClient("kjump")
        self.shutdown_reason: str | None = None
        """Why the machine ended, as QEMU's SHUTDOWN event says; None before that."""
        self._run(self._client.connect(str(path)), 10)
        self._watching = asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    async def _watch(self) -> None:
        with (
            contextlib.suppress(QMPError, asyncio.CancelledError),
            self._client.listener("SHUTDOWN") as events,
        ):
            async for event in events:
                self.shutdown_reason = Record(event["data"], "QMP's SHUTDOWN event").text("reason")

    def _run(self, coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout)

    def execute(self, command: str, arguments: dict[str, object]) -> object:
        """Run a command and return its result; QMPError."""
        return self._run(self._client.execute(command, arguments or None), 60)

    def close(self) -> None:
        """Disconnect."""
        self._watching.cancel()
        with contextlib.suppress(Exception):
            self._run(self._client.disconnect(), 5)
        self._loop.call_soon_threadsafe(self._loop.stop)
