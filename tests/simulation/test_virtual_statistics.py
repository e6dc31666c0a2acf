"""What a run comes to: each figure against its definition written out, and against known cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_runs import facts, outcomes_of, request, summary

from balancer.settings.scenario import ScenarioObjectives
from balancer.simulator.virtual.fairness import WINDOW_SECONDS, fairness, jain
from balancer.simulator.virtual.outcomes import PRIORITIES, Outcome, Request
from balancer.simulator.virtual.statistics import (
    CURVE_PER_MILLE,
    Spread,
    percentile,
    spread_of,
    summarize,
    terciles_of,
)

OBJECTIVES = ScenarioObjectives(ttft_seconds=2, ttft_seconds_per_1000_tokens=1, token_seconds=0.1)
SECONDS = st.floats(0.001, 1000, allow_nan=False)


@st.composite
def rows(draw: st.DrawFn) -> Request:
    outcome = draw(st.sampled_from(Outcome))
    embeds = draw(st.booleans())
    first = draw(SECONDS) if outcome is Outcome.OK and draw(st.integers(0, 9)) else math.nan
    after = draw(SECONDS)
    prompt = draw(st.integers(0, 9000))
    shared = draw(st.integers(0, prompt))
    return request(
        outcome=outcome,
        embeds=embeds,
        priority=draw(st.integers(0, 2)),
        prompt_tokens=prompt,
        output_tokens=0 if embeds else draw(st.integers(0, 500)),
        shared_tokens=shared,
        cached_tokens=draw(st.integers(0, shared)),
        ttft_seconds=first,
        total_seconds=after if math.isnan(first) else first + after,
    )


def is_good(row: Request) -> bool:
    """The definition: answered, the first byte in time for the prompt, then token by token in time."""
    if row.outcome != Outcome.OK or math.isnan(row.ttft_seconds):
        return False
    if row.ttft_seconds > 2 + row.prompt_tokens / 1000:
        return False
    if row.embeds or row.output_tokens < 2:
        return True
    return (row.total_seconds - row.ttft_seconds) / (row.output_tokens - 1) <= 0.1


def least_not_exceeded_by(values: Sequence[float], percent: int) -> float:
    """The definition of a percentile."""
    enough = (
        each
        for each in sorted(values)
        if sum(other <= each for other in values) * 100 >= percent * len(values)
    )
    return next(enough, math.nan)


def same(one: float, other: float) -> bool:
    return one == pytest.approx(other, nan_ok=True)


@settings(deadline=None, max_examples=200)
@given(st.lists(rows(), max_size=40))
def test_spreads_are_those_of_answered_requests(given_rows: list[Request]) -> None:
    made = summary(given_rows, objectives=OBJECTIVES)
    answered = [row for row in given_rows if row.outcome == Outcome.OK and not row.embeds]
    begun = [row for row in answered if not math.isnan(row.ttft_seconds)]
    by_definition = {
        "ttft_seconds": [row.ttft_seconds for row in begun],
        "token_seconds": [
            (row.total_seconds - row.ttft_seconds) / (row.output_tokens - 1)
            for row in begun
            if row.output_tokens > 1
        ],
        "total_seconds": [row.total_seconds for row in answered],
        "embed_seconds": [
            row.total_seconds for row in given_rows if row.outcome == Outcome.OK and row.embeds
        ],
    }

    for name, values in by_definition.items():
        spread: Spread = getattr(made, name)
        assert spread.count == len(values)
        assert same(spread.mean, sum(values) / len(values) if values else math.nan)
        assert same(spread.p50, least_not_exceeded_by(values, 50))
        assert same(spread.p95, least_not_exceeded_by(values, 95))
        assert same(spread.p99, least_not_exceeded_by(values, 99))


@settings(deadline=None, max_examples=200)
@given(st.lists(rows(), max_size=40))
def test_goodput_counts_what_meets_every_objective(given_rows: list[Request]) -> None:
    made = summary(given_rows, objectives=OBJECTIVES)
    generating = [row for row in given_rows if not row.embeds]
    low, high = made.prompt_terciles
    lengths: dict[str, Callable[[Request], bool]] = {
        "short": lambda row: row.prompt_tokens <= low,
        "middle": lambda row: low < row.prompt_tokens <= high,
        "long": lambda row: row.prompt_tokens > high,
    }

    assert (len(given_rows), sum(map(is_good, given_rows))) == (made.goodput.requests, made.goodput.good)
    assert made.goodput.per_second == made.goodput.good / 100
    assert same(made.goodput.share, made.goodput.good / len(given_rows) if given_rows else math.nan)
    for name, belongs in lengths.items():
        of_length = [row for row in generating if belongs(row)]
        told = made.goodput_by_prompt[name]
        assert (len(of_length), sum(map(is_good, of_length))) == (told.requests, told.good)
    for index, priority in enumerate(PRIORITIES):
        of_class = [row for row in given_rows if row.priority == index]
        told = made.goodput_by_priority[priority]
        assert (len(of_class), sum(map(is_good, of_class))) == (told.requests, told.good)


@settings(deadline=None, max_examples=100)
@given(st.lists(rows(), max_size=40))
def test_every_request_is_counted_once(given_rows: list[Request]) -> None:
    made = summary(given_rows)

    assert made.requests == sum(made.outcomes.values()) == len(given_rows)
    assert made.requests == sum(each.requests for each in made.goodput_by_priority.values())
    assert made.outcomes == {
        each.name.lower(): sum(row.outcome == each for row in given_rows) for each in Outcome
    }


@pytest.mark.parametrize(
    ("changes", "good"),
    [
        ({}, 1),
        ({"outcome": Outcome.REJECTED}, 0),
        ({"outcome": Outcome.EXPIRED}, 0),
        ({"outcome": Outcome.FAILED}, 0),
        ({"outcome": Outcome.CANCELLED, "ttft_seconds": 0.5}, 0),
        ({"ttft_seconds": math.nan}, 0),
        ({"ttft_seconds": math.nan, "output_tokens": 1}, 0),
        ({"ttft_seconds": math.nan, "embeds": True}, 0),
        ({"ttft_seconds": 2.1, "total_seconds": 2.1}, 1),
        ({"ttft_seconds": 2.2, "total_seconds": 2.2}, 0),
        ({"total_seconds": 1.5}, 1),
        ({"total_seconds": 1.6}, 0),
        ({"total_seconds": 50.0, "output_tokens": 1}, 1),
    ],
)
def test_a_request_is_good_or_not(changes: dict[str, float], good: int) -> None:
    assert good == summary([request(**changes)], objectives=OBJECTIVES).goodput.good


def test_percentiles_are_values_that_occurred() -> None:
    hundred = [float(each) for each in range(1, 101)]

    assert [percentile(hundred, each) for each in (500, 950, 990, 1000)] == [50, 95, 99, 100]
    assert [percentile([7.0], each) for each in (1, 999)] == [7, 7]
    assert [percentile([1.0, 2.0], each) for each in (500, 501)] == [1, 2]
    assert math.isnan(percentile([], 500))
    assert spread_of([3.0, 1.0, 2.0]) == Spread(3, 2.0, 2.0, 3.0, 3.0)


def test_the_curve_has_each_percentile_of_the_first_byte() -> None:
    made = summary([request(ttft_seconds=each / 1000, total_seconds=9) for each in range(1, 1001)])

    assert [each / 1000 for each in CURVE_PER_MILLE] == list(made.ttft_curve)
    assert all(one < other for one, other in pairwise(made.ttft_curve))


def test_hits_are_those_of_answered_chats() -> None:
    made = summary(
        [
            request(prompt_tokens=1000, shared_tokens=800, cached_tokens=600),
            request(prompt_tokens=1000, shared_tokens=200, cached_tokens=0),
            request(prompt_tokens=1000, shared_tokens=1000, outcome=Outcome.REJECTED),
            request(prompt_tokens=5000, embeds=True, output_tokens=0),
        ]
    )

    assert (made.hits_of_shared, made.hits_of_prompt) == (0.6, 0.3)


def test_what_does_not_exist_is_not_a_number() -> None:
    made = summary([])

    assert all(
        map(math.isnan, (made.hits_of_shared, made.fairness, made.answered_share, made.ttft_seconds.mean))
    )


def test_utilisation_is_the_mean_share_of_time_that_devices_worked() -> None:
    assert summary([], virtual_seconds=200.0, busy_seconds=(50.0, 100.0)).utilisation == 0.375


def test_terciles_of_the_workload_win_over_those_of_the_rows() -> None:
    chats = outcomes_of(request(prompt_tokens=each) for each in (10, 20, 30))

    own = summarize(chats, facts(), OBJECTIVES)
    others = summarize(chats, facts(), OBJECTIVES, prompt_terciles=(5, 25))

    assert [each.requests for each in own.goodput_by_prompt.values()] == [1, 1, 1]
    assert [each.requests for each in others.goodput_by_prompt.values()] == [0, 2, 1]
    assert others.prompt_terciles == (5, 25)


def test_terciles_part_lengths_evenly() -> None:
    assert terciles_of(range(1, 10)) == (3, 6)
    assert terciles_of([1]) == (1, 1)
    assert terciles_of([]) == (0, 0)


def waiting(client: int, start: float, first: float, end: float, **changes: float) -> Request:
    """A request that waits until its first byte, and is answered until its end."""
    return request(
        client=client, arrived_at=start, ttft_seconds=first - start, total_seconds=end - start, **changes
    )


def fair(*given_rows: Request) -> tuple[float, int]:
    return fairness(outcomes_of(given_rows))


def test_clients_that_are_served_alike_are_served_fairly() -> None:
    backlog = [waiting(client, 0, 180, 181) for client in range(4)]
    served = [waiting(client, 60, 70, 90) for client in range(4)]

    assert fair(*backlog, *served) == (1.0, 1)


def test_one_client_that_has_everything_is_the_least_fair_of_all() -> None:
    backlog = [waiting(client, 0, 60, 61) for client in range(4)]

    assert fair(*backlog, waiting(2, 0, 10, 50)) == (0.25, 1)


def test_clients_are_compared_within_their_class_alone() -> None:
    backlog = [waiting(client, 0, 60, 60, priority=client % 2) for client in range(4)]
    served = [waiting(client, 0, 0, 60, priority=0) for client in (0, 2)]

    assert fair(*backlog, *served) == (1.0, 1)


def test_a_client_is_backlogged_only_if_it_waited_all_the_time() -> None:
    steady = [waiting(0, 0, 60, 60), waiting(0, 0, 1, 30)]
    handed_over = [waiting(1, 0, 25, 40), waiting(1, 25, 60, 60)]
    with_a_gap = [waiting(1, 0, 25, 40), waiting(1, 26, 60, 60)]

    assert fair(*steady, *handed_over)[1] == 1
    assert fair(*steady, *with_a_gap)[1] == 0
    assert math.isnan(fair(*steady)[0])


def test_one_that_was_never_answered_waited_until_its_end() -> None:
    refused = request(client=1, outcome=Outcome.EXPIRED, total_seconds=60.0)

    assert fair(waiting(0, 0, 60, 60), waiting(0, 0, 0, 10), refused) == (0.5, 1)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 200), st.integers(0, 150), st.integers(0, 100)),
        max_size=25,
    )
)
def test_fairness_is_what_looking_at_every_second_gives(spans: list[tuple[int, int, int, int]]) -> None:
    window_of = int(WINDOW_SECONDS)
    waits: dict[tuple[int, int], int] = {}
    served: dict[tuple[int, int], int] = {}
    for client, start, wait, answer in spans:
        for second in range(start, start + wait):
            waits[client, second] = 1
        for second in range(start + wait, start + wait + answer):
            served[client, second // window_of] = served.get((client, second // window_of), 0) + 1
    total, clients, windows = 0.0, 0, 0
    for window in range(10):
        seconds = range(window * window_of, (window + 1) * window_of)
        backlogged = [client for client in range(3) if all((client, each) in waits for each in seconds)]
        shares = [float(served.get((client, window), 0)) for client in backlogged]
        if len(shares) > 1 and any(shares):
            total, clients, windows = total + len(shares) * jain(shares), clients + len(shares), windows + 1

    index, counted = fair(*(waiting(client, at, at + wait, at + wait + on) for client, at, wait, on in spans))

    assert counted == windows
    assert same(index, total / clients if clients else math.nan)
