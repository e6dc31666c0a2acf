"""When clients come."""

import math
import statistics
from collections import Counter
from itertools import islice, pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from balancer.simulator.virtual.arrivals import client_weights, diurnal, renewals
from balancer.simulator.virtual.workload import sessions
from tests.property.drawn_workloads import scenario_of


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_clients_come_once_in_a_unit_and_vary_as_asked_for(cv: float) -> None:
    times = [at for at, _ in islice(renewals(Random(1), (1.0,), cv), 60_000)]
    gaps = [later - earlier for earlier, later in pairwise(times)]

    assert pytest.approx(statistics.fmean(gaps), rel=0.05) == 1
    assert cv == pytest.approx(statistics.stdev(gaps) / statistics.fmean(gaps), rel=0.05)


@pytest.mark.parametrize("cv", [0.5, 3.0])
def test_clients_are_in_equilibrium_from_the_start(cv: float) -> None:
    """Otherwise bursty clients would all begin at once, and steady ones late."""
    first = [
        sum(at < 0.25 for at, _ in islice(renewals(Random(seed), (1.0,), cv), 50)) for seed in range(20_000)
    ]

    assert pytest.approx(statistics.fmean(first), rel=0.1) == 0.25


def test_a_few_clients_ask_for_most() -> None:
    weights = client_weights(100, 1.2)

    assert pytest.approx(math.fsum(weights)) == 1
    assert list(weights) == sorted(weights, reverse=True)
    assert sum(weights[:20]) > 0.6
    assert sum(client_weights(100, 100)[:20]) < 0.22


@profile(max_examples=100, deadline=None)
@given(unit=st.floats(0, 1e6), amplitude=st.floats(0, 0.99), period=st.floats(1, 1e5))
def test_a_day_lets_as_many_arrive_as_its_rate_says(unit: float, amplitude: float, period: float) -> None:
    at = diurnal(unit, amplitude, period)

    arrived = at + amplitude * period / math.tau * (1 - math.cos(math.tau * at / period))
    assert unit == pytest.approx(arrived, rel=1e-6, abs=1e-6)


def test_arrivals_follow_the_time_of_the_day() -> None:
    scenario = scenario_of(
        {"kind": "chat", "turns": 1, "arrival_cv": 1},
        requests=20_000,
        diurnal_amplitude=0.8,
        diurnal_seconds=1000,
    )

    halves = Counter(session.starts_at % 1000 < 500 for session in sessions(scenario, 1))

    assert (1 + 2 * 0.8 / math.pi) / 2 == pytest.approx(halves[True] / halves.total(), rel=0.05)
