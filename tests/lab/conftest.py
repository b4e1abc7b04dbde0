"""The lab's ring: real kernels in QEMU. Skipped where there is no QEMU; in CI it must be there."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kjump.lab.machine.kernel import MissingSource
from kjump.lab.machine.qemu import QEMU
from kjump.lab.machine.scene import Hardware, Scene


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/tests/lab/" in str(item.path):
            item.add_marker("lab")
    if shutil.which(QEMU) is None and not os.environ.get("CI"):
        skip = pytest.mark.skip(reason=f"{QEMU} is not installed: run `make test`, which installs it, to force this")
        for item in items:
            if "/tests/lab/" in str(item.path):
                item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    """Skip a test whose kernel's source is not installed: Debian 13 has no 6.1. The reason says what is missing."""
    try:
        return (yield)
    except MissingSource as missing:
        pytest.skip(str(missing))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """As for the fixtures."""
    try:
        return (yield)
    except MissingSource as missing:
        pytest.skip(str(missing))


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder for a scene; after a failure the console log is printed, and the disks always go."""
    yield tmp_path
    log = tmp_path / "console.log"
    if log.exists():
        print(f"--- last of {log.name} ---\n{log.read_text(errors='replace')[-8000:]}")
    for disk in tmp_path.glob("*.img"):
        disk.unlink()


@pytest.fixture
def scene(folder: Path) -> Scene:
    """A machine with Linux 6.12, ready to boot."""
    from kjump.lab.machine import kernel as kernels

    hardware = Hardware(memory=640 << 20, cpus=2)
    return Scene(folder, kernels.build("6.12"), hardware, target_size=512 << 20).prepare()
