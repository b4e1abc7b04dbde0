"""The benchmark of the native core still runs: what it measures is for `make bench`, with nothing else going on."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "core.py"


@pytest.mark.skipif(not shutil.which("zstd"), reason="no zstd program: apt install zstd to force this")
def test_the_benchmark_of_the_native_core_runs() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "4"], capture_output=True, text=True, check=True)
    names = [line.split("  ")[0] for line in done.stdout.splitlines()]
    assert {"classify", "bitmap_runs", "zero_pages"} <= {*names}
