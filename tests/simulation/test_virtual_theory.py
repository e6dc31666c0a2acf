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


@pytest.mark.parametrize(("slots", "instances"), [(1, 1), (4, 1), (2, 3)])
def test_every_single_wait_is_that_of_servers_behind_one_line(slots: int, instances: int) -> None:
    asked = list(arrivals(7, 3000, 0.9 * slots * instances, "lognormal"))

    free_at = [0.0] * (slots * instances)
    expected = []
    for at, _, tokens in asked:
        begins = max(at, free_at[0])
        heapreplace(free_at, begins + tokens / TOKENS)
        expected.append(begins - at)

    assert max(expected) > 3
    assert waits(asked, slots=slots, instances=instances) == pytest.approx(expected, abs=1e-3)


def test_mean_wait_of_four_slots_is_erlangs() -> None:
    asked = list(arrivals(3, 100_000, 0.5 * 4, "exponential"))

    expected = mmk_wait_seconds(arrivals_per_second=2.0, service_seconds=1.0, servers=4)
    assert fmean(waits(asked, slots=2, instances=2)) == pytest.approx(expected, rel=0.03)


def test_mean_wait_of_one_slot_is_pollaczeks_and_khinchines() -> None:
    asked = list(arrivals(5, 100_000, 0.5, "lognormal"))

    squared_variation = e - 1  # of a lognormal with sigma 1
    expected = mg1_wait_seconds(arrivals_per_second=0.5, service_seconds=1.0, service_scv=squared_variation)
    assert fmean(waits(asked, slots=1)) == pytest.approx(expected, rel=0.03)
