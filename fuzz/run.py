"""Coverage-guided fuzzing of one target: python fuzz/run.py TARGET [--seconds N] [--runs N] [libFuzzer's options].

A find (an exception that is no clean error, more than 5 s of a processor, more than 512 MiB) ends the run with a
status that is not 0 and leaves its input in .fuzz/TARGET/. The corpus is kept there too, and grows from run to run.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

import atheris

SECONDS_FOR_ONE = 5
"""Of a processor: a busy machine makes an input no worse."""
HANG = 60
"""Seconds by the clock after which libFuzzer ends an input."""
MOST_MIB = 512
FOLDER = Path(__file__).resolve().parent
TARGETS = ("vmcoreinfo", "dumps", "notes", "images", "superblock", "cmdline")


def main() -> None:
    """Import the target with its coverage watched, and hand it to libFuzzer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=-1)
    chosen, more = parser.parse_known_args()
    sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "tests" / "unit")]  # the seeds are made as in the tests
    with atheris.instrument_imports(include=["kjump"]):
        target = importlib.import_module(chosen.target)
    folder = FOLDER.parent / ".fuzz" / chosen.target
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.INPUTS):
        (corpus / f"seed{number}").write_bytes(seed)
    options = [
        f"-max_total_time={chosen.seconds}",
        f"-runs={chosen.runs}",
        f"-timeout={HANG}",
        f"-rss_limit_mb={MOST_MIB}",
        f"-artifact_prefix={folder}/",
        f"-max_len={target.LONGEST}",
        "-print_final_stats=1",
    ]

    def one_input(data: bytes) -> None:
        begun = time.process_time()
        target.one_input(data)
        taken = time.process_time() - begun
        assert taken < SECONDS_FOR_ONE, f"it took {taken:.1f} s"

    atheris.Setup([sys.argv[0], *options, *more, str(corpus)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
