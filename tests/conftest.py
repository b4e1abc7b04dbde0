"""Settings for all rings of tests."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# Virtual machines share the processors with these: time says nothing about correctness here.
settings.register_profile("kjump", deadline=None)
settings.load_profile("kjump")


def pytest_configure() -> None:
    """Stop unless the native modules are those of `make check-native`, which names their folder."""
    folder = os.environ.get("KJUMP_NATIVE")
    if folder is None:
        return
    from kjump import _core, _dump

    for module in (_core, _dump):
        if not Path(str(module.__file__)).is_relative_to(folder):
            raise pytest.UsageError(f"{module.__name__} comes from {module.__file__}, not from {folder}")


# A shell lets what it starts in the background ignore SIGINT; Python then has no handler that raises KeyboardInterrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
