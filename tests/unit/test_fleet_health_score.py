"""The health score, and the conduct that most of it is made of."""

import math
from collections.abc import Sequence
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.core.names import ModelName
from balancer.core.ticket import Blame, Outcome, Verdict
from balancer.fleet.conduct import MODELS_LIMIT, Conduct, Observation, Paces
from balancer.fleet.health_score import WEIGHTS, HealthScore, Term, factors
from tests.unit.unit_support import OK

M, N = ModelName("m:latest"), ModelName("n:latest")
LEFT = Outcome(verdict=Verdict.NEUTRAL, kind="cancelled")
NUMBERS = st.none() | st.floats(allow_nan=True, allow_infinity=True)


def failed(blames: Blame = Blame.INSTANCE) -> Outcome:
    return Outcome(verdict=Verdict.FAILURE, kind="x", blames=blames)


def score(one: Conduct, *peers: Conduct, now: float, of_late: bool = False) -> float:
    return HealthScore(factors(one.burdens(Paces([one, *peers], now), now)[of_late])).value


def seen(*, leased_at: float = 1e9, **facts: float) -> Observation:
    return Observation(leased_at=leased_at, **facts)


def paced(
    *, token: float = 0.01, first_token: float = 0.001, times: int = 30, model: ModelName = M
) -> Conduct:
    """Of an instance that gave so many answers at that pace, one each second up to second 100."""
    one = Conduct()
    for second in range(101 - times, 101):
        one.observed(model, seen(token=token, first_token=first_token), second)
    return one


# -- the score


@given(st.dictionaries(st.sampled_from(list(WEIGHTS)), NUMBERS))
def test_the_score_is_between_0_and_1_whatever_comes_and_never_0(burdens: dict[Term, float | None]) -> None:
    value = HealthScore(factors(burdens)).value

    assert 0 < value <= 1


@given(st.sampled_from(list(WEIGHTS)), st.floats(0, 3))
def test_what_is_not_known_takes_nothing(term: Term, burden: float) -> None:
    unknown = dict.fromkeys(WEIGHTS)

    assert HealthScore(factors(unknown)).value == 1
    assert HealthScore(factors({**unknown, term: burden})).value >= math.exp(-1.2 * 3) - 1e-12


def test_each_term_takes_by_its_weight_and_no_more_than_three_of_it() -> None:
    burdens: dict[Term, float | None] = dict.fromkeys(WEIGHTS, 0.0)

    for term, weight in WEIGHTS.items():
        assert HealthScore(factors({**burdens, term: 1.0})).value == pytest.approx(math.exp(-weight))
        assert HealthScore(factors({**burdens, term: 99.0})).value == pytest.approx(math.exp(-3 * weight))


def test_where_one_measure_of_speed_is_missing_the_other_counts_for_both() -> None:
    both = factors({Term.FIRST_TOKEN: 1.0, Term.TOKEN: 1.0})
    one = factors({Term.FIRST_TOKEN: 1.0, Term.TOKEN: None})

    assert HealthScore(one).value == pytest.approx(HealthScore(both).value)


def test_the_score_tells_its_worst_term() -> None:
    assert HealthScore({Term.ERRORS: 0.9, Term.HEAT: 0.5}).worst is Term.HEAT
    assert HealthScore({Term.ERRORS: 1.0}).worst is None
    assert HealthScore({}).worst is None
    assert HealthScore({Term.ERRORS: 0.9, Term.HEAT: 0.5}).without({Term.HEAT}).value == 0.9


# -- errors


def test_a_single_failure_is_no_reason_to_eject_and_three_in_a_row_are() -> None:
    healths = []
    one = Conduct()
    for second in (1, 2, 3):
        one.ended(M, failed(), leased_at=second - 0.5, now=second)
        healths.append(score(one, now=second))

    assert healths[0] > 0.4
    assert healths[2] < 0.2


def test_failures_that_were_under_way_together_are_one() -> None:
    one, other = Conduct(), Conduct()
    for _ in range(20):
        one.ended(M, failed(), leased_at=0.5, now=1.0)
    other.ended(M, failed(), leased_at=0.5, now=1.0)

    assert score(one, now=1.0) == score(other, now=1.0) < 1


@pytest.mark.parametrize("outcome", [LEFT, failed(Blame.MODEL), failed(Blame.VARIANT)])
def test_what_is_no_fault_of_the_instance_costs_it_nothing(outcome: Outcome) -> None:
    one = Conduct()
    for second in range(1, 20):
        one.ended(M, outcome, leased_at=second - 0.5, now=second)

    assert score(one, now=20) == 1


def test_a_model_that_always_fails_is_no_fault_of_an_instance_that_serves_another() -> None:
    one = Conduct()
    for second in range(1, 20):
        one.ended(M, failed(Blame.RUNNER), leased_at=second - 0.5, now=second)
    alone = score(one, now=19)
    one.ended(N, OK, leased_at=18, now=19)

    assert (alone < 0.1, score(one, now=19)) == (True, 1)


def test_errors_fade() -> None:
    one = Conduct()
    for second in (1, 2, 3):
        one.ended(M, failed(), leased_at=second - 0.5, now=second)

    assert score(one, now=3) < score(one, now=30) < score(one, now=200) == 1


# -- speed


@pytest.mark.parametrize(
    "slower", [{"token": 0.05, "first_token": 0.005}, {"token": 0.2}, {"first_token": 0.2}]
)
def test_who_is_slower_than_the_others_is_less_healthy(slower: dict[str, float]) -> None:
    slow, others = paced(**slower), [paced(), paced(token=0.012)]

    assert score(slow, *others, now=100) < 0.2
    assert (
        min(score(each, slow, *(other for other in others if other is not each), now=100) for each in others)
        > 0.8
    )


def test_all_that_are_slow_alike_are_healthy() -> None:
    slow = [paced(token=1.0, first_token=1.0) for _ in range(3)]

    assert score(slow[0], *slow[1:], now=100) == pytest.approx(1)


def test_models_are_compared_with_themselves() -> None:
    assert score(paced(token=1.0), paced(model=N), now=100) == 1


def test_who_has_always_been_slow_weighs_less_and_is_no_outlier() -> None:
    slow = paced(token=0.1, first_token=0.01)

    assert score(slow, paced(), paced(), now=100) < 0.2
    assert score(slow, paced(), paced(), now=100, of_late=True) == pytest.approx(1)


@pytest.mark.parametrize("peers", [[], [paced(), paced()]])
def test_who_becomes_slow_is_an_outlier_alone_or_among_others(peers: Sequence[Conduct]) -> None:
    one = paced()
    for second in range(101, 116):
        one.observed(M, seen(token=0.05, first_token=0.005), second)

    assert score(one, *peers, now=115, of_late=True) < 0.2
    assert score(one, *peers, now=115 + 120, of_late=True) > 0.9


def test_one_slow_answer_makes_no_outlier() -> None:
    one = paced()
    one.observed(M, seen(token=0.1, first_token=0.01), 101)

    assert score(one, paced(), now=101, of_late=True) > 0.6


def test_what_began_before_it_is_judged_anew_tells_nothing() -> None:
    one = paced()
    one.begin_anew(100.5)
    for _ in range(20):
        one.observed(M, seen(token=1.0, leased_at=100.0), 101)
        one.ended(M, failed(), leased_at=100.0, now=101)

    assert score(one, paced(), now=101) == 1


def test_what_is_forgotten_of_late_leaves_what_it_has_always_been_like() -> None:
    one = paced()
    one.begin_anew(100.5)
    assert score(one, paced(), now=100) == 1

    for second in range(101, 116):
        one.observed(M, seen(token=0.05, first_token=0.005), second)

    assert score(one, now=115) < 0.2


def test_waiting_inside_the_instance_counts() -> None:
    one, other = Conduct(), Conduct()
    for second in range(100):
        one.observed(M, seen(waiting=0.5), second)
        other.observed(M, seen(waiting=0.0), second)

    assert score(other, now=100) == 1
    assert score(one, now=100) == pytest.approx(math.exp(-0.4), abs=0.05)


@given(st.lists(st.floats(1e-3, 10), min_size=1, max_size=7))
def test_speed_is_compared_with_the_median_of_the_others(seconds: list[float]) -> None:
    conducts = [paced(token=each, times=1) for each in seconds]
    paces = Paces(conducts, 100)

    for number, each in enumerate(seconds):
        others = [math.log(other) for index, other in enumerate(seconds) if index != number]
        expected = pytest.approx(median(others)) if others else None
        assert paces.of_others(Term.TOKEN, M, math.log(each)) == expected


TIMES = st.floats(0, 1e6)
EVENTS = st.lists(
    st.tuples(
        TIMES,
        st.sampled_from([M, N]),
        st.sampled_from([OK, LEFT, failed(), failed(Blame.RUNNER)])
        | st.builds(
            Observation, leased_at=TIMES, token=NUMBERS, first_token=NUMBERS, waiting=st.none() | TIMES
        ),
    ),
    max_size=40,
)


@given(EVENTS, EVENTS, TIMES)
def test_whatever_happens_the_score_is_one_and_above_0(
    mine: list[tuple[float, ModelName, object]], theirs: list[tuple[float, ModelName, object]], later: float
) -> None:
    conducts, last = [Conduct(), Conduct()], 0.0
    for of, events in zip(conducts, (mine, theirs), strict=True):
        now = 0.0
        for seconds, model, event in events:
            now += seconds
            if isinstance(event, Observation):
                of.observed(model, event, now)
            elif isinstance(event, Outcome):
                of.ended(model, event, leased_at=now - 1, now=now)
        last = max(last, now)

    for of_late in (False, True):
        assert 0 < score(conducts[0], conducts[1], now=last + later, of_late=of_late) <= 1


def test_the_conduct_of_so_many_models_at_most_is_remembered() -> None:
    one = Conduct()
    for number in range(3 * MODELS_LIMIT):
        one.ended(ModelName(f"m{number}"), OK, leased_at=0, now=1)

    assert len(one._of) == MODELS_LIMIT
