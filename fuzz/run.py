"""Coverage-guided fuzzing of one target: python fuzz/run.py TARGET [--seconds N] [--runs N] [libFuzzer's options].

A find (an exception that is no clean error, more than 5 s, more than 512 MiB) ends the run with a status that is not
0 and leaves its input in .fuzz/TARGET/. The corpus is kept there too, and grows from run to run.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import atheris

SECONDS_FOR_ONE = 5
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
        f"-timeout={SECONDS_FOR_ONE}",
        f"-rss_limit_mb={MOST_MIB}",
        f"-artifact_prefix={folder}/",
        f"-max_len={target.LONGEST}",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, *more, str(corpus)], target.one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
