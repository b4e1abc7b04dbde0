"""The power-cut model in full: `make powercut HISTORIES=n SEED=s`, or this file as a program.

First every point of every case in `cuts`, then random histories, in as many processes as asked for. What was found is
printed as JSON; the exit status is 1 when a rule was broken. A history is played again by itself with --only.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from typing import Any

import cuts
import histories

_AT_A_TIME = 25


def exhaustive(jobs: int) -> tuple[dict[str, Any], list[str]]:
    """Try all cuts of all cases; return numbers and violations."""
    begun = time.monotonic()
    with multiprocessing.Pool(jobs) as pool:
        found = pool.map(cuts.try_all, cuts.CASES, chunksize=1)
    states = {state for one in found for state in one.states}
    numbers = {
        "cases": len(found),
        "cuts": sum(one.cuts for one in found),
        "resumed": sum(one.resumed for one in found),
        "states": sorted(state.name for state in states),
        "seconds": round(time.monotonic() - begun, 1),
    }
    return numbers, [violation for one in found for violation in one.violations]


def explore(seed: int, numbers: range, jobs: int) -> tuple[dict[str, Any], list[str]]:
    """Play histories; return numbers and violations."""
    begun, total = time.monotonic(), histories.Account()
    parts = [numbers[i : i + _AT_A_TIME] for i in range(0, len(numbers), _AT_A_TIME)]
    with multiprocessing.Pool(jobs) as pool:
        for account in pool.imap_unordered(functools.partial(histories.explore, seed), parts):
            total += account
            _progress(total.histories, len(numbers), total.violations)
    seconds = time.monotonic() - begun
    return {
        "histories": total.histories,
        "seed": seed,
        "seconds": round(seconds, 1),
        "histories per second": round(total.histories / seconds, 1),
        "resumed": total.resumed,
        "boots": total.boots,
        "steps": dict(total.steps.most_common()),
        "faults": dict(total.faults.most_common()),
    }, total.violations


def _progress(done: int, total: int, violations: Iterable[str]) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} histories, {len([*violations])} violations ", end="", file=sys.stderr)


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--histories", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--only", type=int, help="the number of one history")
    asked = parser.parse_args()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # no key cancels a save here
    if asked.only is not None:
        found = histories.history(asked.seed, asked.only)
        print("\n".join(found.violations) or "no rule was broken")
        sys.exit(bool(found.violations))
    all_cuts, broken = exhaustive(asked.jobs)
    explored, more = explore(asked.seed, range(asked.histories), asked.jobs)
    broken += more
    print(json.dumps({"exhaustive": all_cuts, "random": explored, "violations": broken}, indent=1))
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
