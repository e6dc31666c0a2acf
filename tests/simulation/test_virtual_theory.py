"""The fleet in virtual time against queues whose waiting times are known."""

from collections.abc import Iterator
from heapq import heapreplace
from math import e
from random import Random
from statistics import fmean

import pytest

from balancer.simulator.service_model import ServiceRates
from balancer.simulator.virtual.queueing import mg1_wait_seconds, mmk_wait_seconds
from balancer.simulator.virtual.run import serve
from tests.simulation.virtual_support import rows, scenario, shapes, single_turns

TOKENS = 10_000
"""A second's answer at these rates: whole tokens round the service times by no more than 0.01 %."""
RATES = ServiceRates(
    prefill_tokens_per_second=1e9, decode_tokens_per_second=float(TOKENS), parallel_slowdown=0.0
)


def arrivals(seed: int, requests: int, per_second: float, service: str) -> Iterator[tuple[float, int, int]]:
    """Poisson arrivals with a mean service of a second."""
    chance, at = Random(seed), 0.0
    for _ in range(requests):
        at += chance.expovariate(per_second)
        seconds = chance.expovariate(1.0) if service == "exponential" else chance.lognormvariate(-0.5, 1.0)
        yield at, 1, max(1, round(seconds * TOKENS))


def waits(asked: list[tuple[float, int, int]], *, slots: int, instances: int = 1) -> list[float]:
    """How long each request waited in the balancer's queue."""
    run = serve(
        scenario(slots=slots),
        shapes(*range(instances), rates=RATES),
        single_turns(asked),
        strategy="least_connections",
        seed=1,
    )
    assert len(run.outcomes) == len(asked)
    return [each.queued_seconds for each in rows(run.outcomes)]


def behind_one_line(asked: list[tuple[float, int, int]], servers: int) -> list[float]:
    """The same waits by recursion: whoever is first in line takes the server that is free first."""
    free_at = [0.0] * servers
    waited = []
    for at, _, tokens in asked:
        begins = max(at, free_at[0])
        heapreplace(free_at, begins + tokens / TOKENS)
        waited.append(begins - at)
    return waited


@pytest.mark.parametrize(
    ("slots", "instances", "service"),
    [(1, 1, "lognormal"), (2, 2, "exponential"), (4, 1, "lognormal"), (2, 3, "lognormal")],
)
def test_every_single_wait_is_that_of_servers_behind_one_line(
    slots: int, instances: int, service: str
) -> None:
    asked = list(arrivals(7, 4000, 0.9 * slots * instances, service))

    expected = behind_one_line(asked, slots * instances)

    assert max(expected) > 3
    assert waits(asked, slots=slots, instances=instances) == pytest.approx(expected, abs=1e-3)


def test_servers_behind_one_line_wait_as_long_as_theory_says() -> None:
    """In the mean of so many requests that chance is small: what equals the recursion equals the theory."""
    four = behind_one_line(list(arrivals(1, 1_000_000, 0.5 * 4, "exponential")), 4)
    assert fmean(four) == pytest.approx(
        mmk_wait_seconds(arrivals_per_second=2.0, service_seconds=1.0, servers=4), rel=0.03
    )
    one = behind_one_line(list(arrivals(1, 1_000_000, 0.5, "lognormal")), 1)
    squared_variation = e - 1  # of a lognormal with sigma 1
    assert fmean(one) == pytest.approx(
        mg1_wait_seconds(arrivals_per_second=0.5, service_seconds=1.0, service_scv=squared_variation),
        rel=0.03,
    )
