"""Ratios by seed, their means and intervals: known cases, and what holds of all of them."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_runs import request, summary

from balancer.simulator.virtual.comparison import (
    FIGURES,
    Comparison,
    Figure,
    across,
    compare,
    geometric_mean,
    interval,
)
from balancer.simulator.virtual.statistics import Summary

LOADS = FIGURES["loads"]
GOODPUT = FIGURES["goodput"]
RATIOS = st.lists(st.floats(0.01, 100), min_size=2, max_size=12)


def runs(*loads: float) -> list[Summary]:
    """Runs of seeds 1, 2, … with so many loads."""
    return [summary(loads=each, seed=seed) for seed, each in enumerate(loads, start=1)]


def loads_compared(mine: tuple[float, ...], baseline: tuple[float, ...]) -> Comparison:
    return compare(runs(*mine), runs(*baseline), LOADS)


def test_runs_are_paired_by_their_seeds() -> None:
    found = compare(runs(1, 4, 9)[::-1], runs(2, 2, 3), LOADS)

    assert found.seeds == (3, 2, 1)
    assert found.ratios == (3.0, 2.0, 0.5)
    assert found.mean == pytest.approx(3 ** (1 / 3))


def test_a_seed_that_one_side_lacks_is_not_compared() -> None:
    for mine, baseline in ((runs(1, 1)[1:], runs(2, 4)), (runs(1, 1), runs(2, 4)[1:])):
        found = compare(mine, baseline, LOADS)

        assert (found.seeds, found.ratios) == ((2,), (0.25,))
        assert math.isnan(found.low)


def test_wins_ties_and_the_worst_seed_are_told() -> None:
    fewer = loads_compared((1, 2, 6, 3), (2, 2, 2, 4))

    assert (fewer.wins, fewer.ties, fewer.worst, fewer.worst_seed) == (2, 1, 3.0, 3)


def test_more_is_better_where_it_is() -> None:
    better = [summary([request()] * 4, seed=1), summary([request()], seed=2)]
    baseline = [summary([request()] * 2, seed=1), summary([request()] * 2, seed=2)]

    found = compare(better, baseline, GOODPUT)

    assert (found.ratios, found.wins, found.worst, found.worst_seed) == ((2.0, 0.5), 1, 0.5, 2)


def test_equal_zeros_are_equal() -> None:
    found = loads_compared((0, 0), (0, 0))

    assert (found.ratios, found.mean, found.ties) == ((1.0, 1.0), 1.0, 2)


def test_nothing_against_something_is_zero_and_the_other_way_infinite() -> None:
    none = loads_compared((0, 3), (2, 3))
    some = loads_compared((2, 3), (0, 3))
    both = loads_compared((0, 2), (2, 0))

    assert (none.ratios, none.mean, (none.low, none.high)) == ((0.0, 1.0), 0.0, (0.0, 1.0))
    assert ((math.inf, 1.0), math.inf, math.inf) == (some.ratios, some.mean, some.worst)
    assert (0.0, math.inf) == both.ratios
    assert math.isnan(both.mean)
    assert math.isnan(both.low)


def test_a_figure_that_one_side_lacks_leaves_no_mean() -> None:
    figure = FIGURES["ttft_p99"]
    mine = [summary([], seed=1), summary([request()], seed=2)]
    baseline = [summary([request()], seed=1), summary([request()], seed=2)]

    found = compare(mine, baseline, figure)

    assert math.isnan(found.ratios[0])
    assert math.isnan(found.mean)
    assert math.isnan(found.worst)
    assert (found.worst_seed, found.without) == (None, 0)


def test_a_figure_that_no_side_has_is_counted() -> None:
    figure = FIGURES["ttft_p99"]
    mine = [summary([], seed=1), summary([request(ttft_seconds=0.25)], seed=2)]
    baseline = [summary([], seed=1), summary([request()], seed=2)]

    found = compare(mine, baseline, figure)

    assert (found.without, found.mean, found.wins) == (1, 0.5, 1)


@settings(deadline=None, max_examples=50)
@given(RATIOS)
def test_the_interval_is_around_the_mean_and_within_the_ratios(ratios: list[float]) -> None:
    low, high = interval(ratios)

    assert min(ratios) * 0.999 <= low <= geometric_mean(ratios) * 1.001
    assert geometric_mean(ratios) * 0.999 <= high <= max(ratios) * 1.001


@settings(deadline=None, max_examples=50)
@given(RATIOS, st.floats(0.1, 10))
def test_what_is_so_many_times_as_much_has_such_an_interval(ratios: list[float], factor: float) -> None:
    scaled = interval([each * factor for each in ratios])

    assert [each * factor for each in interval(ratios)] == pytest.approx(scaled)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99)), min_size=2, max_size=12))
def test_the_other_way_round_every_ratio_is(pairs: list[tuple[int, int]]) -> None:
    mine, baseline = zip(*pairs, strict=True)

    one, other = loads_compared(mine, baseline), loads_compared(baseline, mine)

    assert one.mean == pytest.approx(1 / other.mean)
    assert one.wins + one.ties + other.wins == len(pairs)


def test_two_seeds_tell_no_more_than_that_it_is_between_them() -> None:
    assert (2.0, pytest.approx(8.0)) == interval([2.0, 8.0])
    assert interval([3.0, 3.0, 3.0]) == (pytest.approx(3.0), pytest.approx(3.0))


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """95 % is meant; of ten seeds the plain percentile interval holds it in 91 % of these draws."""
    random = Random(4)
    held = 0
    for _ in range(500):
        low, high = interval([math.exp(random.gauss(0.2, 0.3)) for _ in range(10)])
        held += low <= math.exp(0.2) <= high

    assert 0.93 <= held / 500 <= 0.97


def test_scenarios_together_tell_the_worst_beside_the_mean() -> None:
    by_scenario = {"a": loads_compared((1, 1), (4, 4)), "b": loads_compared((2, 2), (2, 2))}

    found = across(by_scenario, LOADS)

    assert (found.mean, found.worst, found.worst_scenario) == (0.5, 1.0, "b")


def test_a_scenario_without_a_mean_leaves_none_over_all() -> None:
    by_scenario = {"a": loads_compared((1, 1), (4, 4)), "b": loads_compared((0, 2), (2, 0))}

    assert math.isnan(across(by_scenario, LOADS).mean)
    assert math.isnan(across({}, LOADS).mean)


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
def test_each_figure_is_a_number_of_a_run(figure: Figure) -> None:
    made = summary(
        [
            request(shared_tokens=50, cached_tokens=25),
            request(prompt_tokens=200, priority=0),
            request(prompt_tokens=300, priority=2),
            request(embeds=True, output_tokens=0, total_seconds=0.5),
        ]
    )

    assert math.isfinite(figure.of(made)) or figure.key == "fairness"
    assert figure.unit in {"s", "1/s", "%", ""}
