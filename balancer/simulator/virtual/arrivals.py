"""When clients begin: each is a renewal process of its own, a few of them ask for most, and days go by.

Source: ServeGen (arXiv 2505.09999): a workload is the sum of its clients, whose rates are very unequal and
whose times between requests are better told by Gamma than by exponential distributions; BurstGPT
(arXiv 2401.17644) models bursts by Gamma distributions too.
"""

import heapq
import math
from collections.abc import Iterator
from random import Random

_HALVINGS = 48


def client_weights(count: int, skew: float) -> tuple[float, ...]:
    """The clients' parts of all arrivals, the largest first; evenly spaced quantiles of a Pareto
    distribution, so that how unequal clients are does not hang on the seed."""
    drawn = [((index + 0.5) / count) ** (-1 / skew) for index in range(count)]
    total = math.fsum(drawn)
    return tuple(each / total for each in drawn)


def renewals(random: Random, weights: tuple[float, ...], cv: float) -> Iterator[tuple[float, int]]:
    """Times and clients of arrivals for ever, in order, one for each unit of time in the mean. The times
    between those of one client are Gamma distributed with this coefficient of variation; each process is in
    equilibrium from the start: its first time is the rest of an interval that was under way.
    """
    shape = 1 / cv**2
    scales = [1 / (weight * shape) for weight in weights]
    gap = random.gammavariate
    upcoming = [(random.random() * gap(shape + 1, scale), client) for client, scale in enumerate(scales)]
    heapq.heapify(upcoming)
    while True:
        at, client = upcoming[0]
        yield at, client
        heapq.heapreplace(upcoming, (at + gap(shape, scales[client]), client))


def diurnal(unit: float, amplitude: float, period: float) -> float:
    """The time at which a rate of 1 + amplitude · sin(2π · time / period) has let so many arrivals happen as
    a rate of 1 has in `unit`. Grows with `unit`, but for rounding."""
    swing = amplitude * period / math.tau
    if not swing:
        return unit
    low, high = max(0.0, unit - 2 * swing), unit
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle + swing * (1 - math.cos(math.tau * middle / period)) < unit:
            low = middle
        else:
            high = middle
    return high
