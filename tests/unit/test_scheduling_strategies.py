"""The strategies: what each one promises of its picks."""

import json
from collections import Counter
from copy import deepcopy
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.scheduling.strategies import STRATEGIES, PowerOfTwo, RandomChoice
from balancer.settings import Strategy
from tests.unit.unit_support import FakeView, seen, ticket, view

T = ticket()


def picks(name: str, views: list[FakeView], count: int, *, seed: int = 7, settle: bool = True) -> list[str]:
    """So many picks in a row; of equal scores the first, as a scheduler without chance would."""
    strategy = STRATEGIES[name](Random(seed))
    chosen = []
    for _ in range(count):
        scores = [sum(terms.values()) for terms in strategy.score(T, seen(views))]
        best = views[scores.index(min(scores))]
        strategy.picked(*seen([best]), seen(views))
        chosen.append(str(best.id))
    return chosen


def test_the_shelf_holds_every_strategy_that_can_be_configured_and_no_other() -> None:
    assert {each.value for each in Strategy} == {"adaptive", *STRATEGIES}


def test_smooth_round_robin_spreads_turns_as_nginx_does() -> None:
    views = [view("a", weight=5), view("b", weight=1), view("c", weight=1)]

    assert list("aabacaa") * 3 == picks("weighted_round_robin", views, 21)


@pytest.mark.parametrize("weights", [[5, 1, 1], [1, 1], [3, 2], [0.5, 0.25, 0.25], [10, 1, 1, 1, 1], [7]])
def test_smooth_round_robin_is_proportional_at_every_moment(weights: list[float]) -> None:
    views = [view(str(index), weight=weight) for index, weight in enumerate(weights)]
    counts: Counter[str] = Counter()

    for done, name in enumerate(picks("weighted_round_robin", views, 1000), start=1):
        counts[name] += 1
        for each in views:
            assert abs(counts[str(each.id)] - done * each.weight / sum(weights)) <= len(weights)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_smooth_round_robin_gives_each_its_weight_in_a_round(weights: list[int]) -> None:
    views = [view(str(index), weight=weight) for index, weight in enumerate(weights)]

    assert dict(enumerate(weights)) == {
        int(name): count
        for name, count in Counter(picks("weighted_round_robin", views, sum(weights))).items()
    }


def test_smooth_round_robin_gives_turns_by_weight_times_health() -> None:
    views = [view("a", weight=2, health_score=0.25), view("b"), view("c", weight=2, health_score=0.75)]

    assert Counter(picks("weighted_round_robin", views, 60)) == {"a": 10, "b": 20, "c": 30}


def test_smooth_round_robin_tells_weight_and_health() -> None:
    strategy = STRATEGIES["weighted_round_robin"](Random(1))
    ill = view("a", weight=4, health_score=0.75)

    assert [dict(terms) for terms in strategy.score(T, seen([ill]))] == [
        {"credit": 0.0, "weight": -4, "ill_health": 1.0}
    ]


def test_smooth_round_robin_follows_health_as_it_changes() -> None:
    strategy = STRATEGIES["weighted_round_robin"](Random(1))
    a, b = view("a"), view("b")
    turns: list[str] = []
    for turn in range(60):
        a.health_score = 0.25 if 20 <= turn < 40 else 1.0
        scores = [sum(terms.values()) for terms in strategy.score(T, seen([a, b]))]
        chosen = [a, b][scores.index(min(scores))]
        strategy.picked(*seen([chosen]), seen([a, b]))
        turns.append(chosen.id)

    assert [turns[begin : begin + 20].count("a") for begin in (0, 20, 40)] == [10, 4, 10]


def test_an_instance_that_was_away_does_not_make_up_for_it_in_a_burst() -> None:
    strategy = STRATEGIES["weighted_round_robin"](Random(1))
    a, b = view("a"), view("b")
    for _ in range(50):
        strategy.picked(*seen([a]), seen([a]))

    turns = []
    for _ in range(4):
        scores = [sum(terms.values()) for terms in strategy.score(T, seen([a, b]))]
        chosen = [a, b][scores.index(min(scores))]
        strategy.picked(*seen([chosen]), seen([a, b]))
        turns.append(chosen.id)

    assert turns == ["a", "b", "a", "b"]


def test_least_connections_counts_per_unit_of_weight() -> None:
    views = [view("a", running=4, weight=4), view("b", running=2, weight=1), view("c", running=3, weight=2)]

    scores = [
        sum(terms.values()) for terms in STRATEGIES["least_connections"](Random(1)).score(T, seen(views))
    ]

    assert scores == [1.0, 2.0, 1.5]


def test_least_connections_fills_by_weight() -> None:
    views = [view("a", weight=3), view("b", weight=1)]
    strategy = STRATEGIES["least_connections"](Random(1))
    for _ in range(80):
        scores = [sum(terms.values()) for terms in strategy.score(T, seen(views))]
        views[scores.index(min(scores))].running += 1

    assert [each.running for each in views] == [60, 20]


def test_round_robin_takes_each_in_turn() -> None:
    assert list("abc" * 4) == picks("round_robin", [view("a"), view("b"), view("c")], 12)


def test_round_robin_takes_weight_for_nothing() -> None:
    assert list("ab" * 3) == picks("round_robin", [view("a", weight=9), view("b")], 6)


@given(st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=1, max_size=60))
def test_round_robin_is_fair_while_candidates_come_and_go(rounds: list[set[int]]) -> None:
    strategy = STRATEGIES["round_robin"](Random(1))
    views = [view(str(number)) for number in range(5)]
    passed_over: Counter[int] = Counter()

    for present in rounds:
        candidates = [views[number] for number in sorted(present)]
        scores = [sum(terms.values()) for terms in strategy.score(T, seen(candidates))]
        chosen = candidates[scores.index(min(scores))]
        strategy.picked(*seen([chosen]), seen(candidates))
        passed_over[int(chosen.id)] = 0
        for number in present - {int(chosen.id)}:
            passed_over[number] += 1
        assert max(passed_over.values()) < len(views)


@given(st.integers(), st.lists(st.integers(0, 50), min_size=3, max_size=3, unique=True))
def test_power_of_two_never_picks_the_busiest_of_three(seed: int, running: list[int]) -> None:
    views = [view(str(number), running=busy) for number, busy in enumerate(running)]

    assert str(running.index(max(running))) not in picks("power_of_two", views, 20, seed=seed)


def test_power_of_two_draws_every_pair_and_takes_the_less_busy() -> None:
    views = [view("idle"), view("some", running=1), view("most", running=2)]
    counts = Counter(picks("power_of_two", views, 3000))

    assert pytest.approx(counts["idle"], abs=150) == 2000
    assert pytest.approx(counts["some"], abs=150) == 1000


def test_power_of_two_counts_per_unit_of_weight() -> None:
    views = [view("big", running=4, weight=8), view("small", running=1, weight=1)]

    assert {"big"} == set(picks("power_of_two", views, 50))


def test_power_of_two_is_content_with_one_candidate() -> None:
    assert picks("power_of_two", [view("a", running=9)], 1) == ["a"]


@pytest.mark.parametrize("weights", [[1, 1, 1], [5, 3, 2], [0.1, 0.9]])
def test_chance_falls_in_proportion_to_weight(weights: list[float]) -> None:
    views = [view(str(index), weight=weight) for index, weight in enumerate(weights)]
    count = 5000
    counts = Counter(picks("random", views, count))

    expected = [count * weight / sum(weights) for weight in weights]
    chi_square = sum((counts[str(index)] - share) ** 2 / share for index, share in enumerate(expected))
    assert chi_square < 13.8  # one in a thousand for two degrees of freedom; the seed is fixed


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_one_seed_gives_one_sequence(name: str) -> None:
    views = [view("a", running=2), view("b", weight=2), view("c", running=1)]

    assert picks(name, views, 50, seed=3) == picks(name, views, 50, seed=3)


@pytest.mark.parametrize("kind", [RandomChoice, PowerOfTwo])
def test_another_seed_gives_another_sequence(kind: type) -> None:
    name = next(name for name, each in STRATEGIES.items() if each is kind)
    views = [view(str(number)) for number in range(5)]

    assert picks(name, views, 50, seed=3) != picks(name, views, 50, seed=4)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_scoring_changes_nothing_that_a_strategy_remembers(name: str) -> None:
    strategy = STRATEGIES[name](Random(1))
    views = [view("a", weight=2), view("b"), view("c")]
    strategy.picked(*seen([views[0]]), seen(views))
    remembered = {key: deepcopy(value) for key, value in vars(strategy).items() if key != "_random"}

    for _ in range(5):
        strategy.score(T, seen(views))

    assert remembered == {key: value for key, value in vars(strategy).items() if key != "_random"}


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize("count", [1, 2, 7])
def test_every_candidate_gets_terms_that_can_be_told_in_json(name: str, count: int) -> None:
    views = [view(str(number), running=number) for number in range(count)]

    scores = STRATEGIES[name](Random(1)).score(T, seen(views))

    assert count == len(scores)
    assert all(terms for terms in scores)
    json.dumps([dict(terms) for terms in scores], allow_nan=False)
