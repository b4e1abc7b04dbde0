"""Losses of power, at random moments of a save and of a restore."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from kjump.lab.campaign import checkpoints
from kjump.lab.campaign.campaign import Campaign, fault
from kjump.lab.campaign.checkpoints import Checkpoint, PowerLoss

_TWO_ENDS = "the saved system is back with all its work, or an ordinary boot; the root file system clean after either"


def lose_power(campaign: Campaign, moments: Iterable[tuple[Checkpoint, float]]) -> str:
    """Cut the power at each of `moments` (seconds after a checkpoint); return the results as a sentence."""
    prepared = campaign.prepared
    numbers = itertools.count()

    def one(moment: tuple[Checkpoint, float]) -> PowerLoss:
        folder = campaign.scratch / f"loss-{next(numbers)}"
        result = checkpoints.lose_power(prepared, *moment, folder)
        campaign.tell(f"  power lost {result.moment:.2f} s after {result.point}: {result.state}; {result.outcome}")
        return result

    with ThreadPoolExecutor(campaign.jobs) as pool:
        results = list(pool.map(one, moments))
    campaign.runs += results
    bad = sum(not result.ok for result in results)
    states = ", ".join(f"{count} {state}" for state, count in Counter(r.state for r in results).most_common())
    outcomes = ", ".join(f"{count} {what}" for what, count in Counter(r.outcome for r in results).most_common())
    return f"{len(results)} losses (seed {campaign.seed}), image then: {states}; {outcomes}; {bad} bad"


def moments_after(
    point: Checkpoint, length: float, count: int, generator: random.Random
) -> Iterator[tuple[Checkpoint, float]]:
    """Yield `count` random moments, one in each of `count` equal parts of the `length` seconds after `point`."""
    for index in range(count):
        yield point, (index + generator.random()) * length / count


@fault("killed-while-saving", _TWO_ENDS, "; 0 bad")
def _while_saving(campaign: Campaign) -> str:
    generator, point = random.Random(campaign.seed), campaign.prepared.saving
    # A little longer than the run took, so that in some trials the image is complete.
    return lose_power(campaign, moments_after(point, point.length * 1.1, campaign.size.save_losses, generator))


@fault("killed-while-restoring", _TWO_ENDS, "; 0 bad")
def _while_restoring(campaign: Campaign) -> str:
    generator, prepared = random.Random(campaign.seed), campaign.prepared
    early = campaign.size.restore_losses // 4
    in_third_kernel = (campaign.size.restore_losses - early) // 2
    late = campaign.size.restore_losses - early - in_third_kernel
    points = ((prepared.resuming, early), (prepared.restoring, late), (prepared.restoring_in_c, in_third_kernel))
    moments = (moments_after(point, point.length, count, generator) for point, count in points)
    return lose_power(campaign, itertools.chain.from_iterable(moments))


FAULTS = (_while_saving, _while_restoring)
