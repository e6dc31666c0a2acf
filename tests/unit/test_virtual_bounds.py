"""The floor of each request, and the loads that a sequence of requests makes necessary in small cases."""

from math import isnan

import pytest

from balancer.simulator.service_model import ServiceRates
from balancer.simulator.virtual.bounds import floor
from balancer.simulator.virtual.model_loads import (
    LoadProblem,
    belady_loads,
    lower_bound_loads,
    optimal_loads,
)
from balancer.simulator.virtual.outcomes import Outcome, Outcomes, Request


def outcomes(**facts: float) -> Outcomes:
    """One answered request with those facts."""
    made = Outcomes()
    made.models = ["small", "large"]
    names = Request.__struct_fields__
    made.add(*(facts.get(name, 0) for name in names))
    return made


SLOW = ServiceRates(prefill_tokens_per_second=100.0, decode_tokens_per_second=50.0)
FAST = ServiceRates(prefill_tokens_per_second=1000.0, decode_tokens_per_second=10.0)
RATES = {"small": [SLOW, FAST], "large": [SLOW]}


def test_the_floor_takes_the_best_of_each_device_and_nothing_that_was_said_before() -> None:
    floors = floor(outcomes(prompt_tokens=2500, shared_tokens=500, output_tokens=100), RATES)

    assert list(floors.ttft_seconds) == [2.0]
    assert list(floors.total_seconds) == [4.0]


def test_the_floor_is_by_the_rates_of_the_model_asked_for() -> None:
    assert list(floor(outcomes(model=1, prompt_tokens=200), RATES).ttft_seconds) == [2.0]


def test_one_token_of_every_prompt_is_evaluated() -> None:
    assert list(floor(outcomes(prompt_tokens=500, shared_tokens=500), RATES).ttft_seconds) == [0.001]


@pytest.mark.parametrize("outcome", [each for each in Outcome if each is not Outcome.OK])
def test_there_is_no_floor_of_what_was_not_answered(outcome: Outcome) -> None:
    floors = floor(outcomes(prompt_tokens=500, outcome=outcome), RATES)

    assert isnan(floors.ttft_seconds[0])
    assert isnan(floors.total_seconds[0])


def test_a_model_without_rates_has_no_floor() -> None:
    with pytest.raises(KeyError, match="large"):
        floor(outcomes(), {"small": [SLOW]})


def problem(
    requests: str, sizes: str, *capacities: int, residents: tuple[str, ...] = (), **facts: object
) -> LoadProblem:
    """Models are told by digits; every load costs 1 unless told otherwise."""
    return LoadProblem(
        requests=tuple(map(int, requests)),
        sizes=tuple(map(int, sizes)),
        costs=facts.pop("costs", (1.0,) * len(sizes)),  # type: ignore[arg-type]  # a test names what it needs
        capacities=capacities,
        residents=tuple(frozenset(map(int, each)) for each in residents),
        **facts,  # type: ignore[arg-type]  # likewise
    )


@pytest.mark.parametrize(
    ("case", "loads"),
    [
        (problem("", "11", 2), 0),
        (problem("000", "1", 1), 1),
        (problem("010101", "11", 2), 2),
        (problem("010101", "11", 1), 6),
        (problem("010101", "11", 1, residents=("0",)), 5),
        (problem("010101", "11", 1, 1), 2),
        (problem("0101", "11", 1, 1, residents=("0", "1")), 0),
        (problem("0101", "13", 1, 3), 2),
        (problem("01020102", "111", 2), 5),  # 0 stays, 1 and 2 take turns, and the last 2 is still there
        (problem("0120", "211", 2), 4),
        (problem("0120", "111", 4, most_models=2), 3),
        (problem("01201", "111", 4, most_models=2), 4),
        (problem("0101", "22", 3, residents=("0",), costs=(5.0, 1.0)), 7),
    ],
)
def test_the_optimum_of_cases_that_can_be_counted_by_hand(case: LoadProblem, loads: float) -> None:
    assert optimal_loads(case) == pytest.approx(loads)


def test_the_optimum_keeps_what_is_dear_to_load_where_belady_does_not() -> None:
    case = problem("01210", "111", 2, costs=(10.0, 1.0, 1.0), residents=("01",))

    assert belady_loads(case) == 11.0
    assert optimal_loads(case) == 2.0


def test_beladys_rule_loads_where_what_has_to_leave_is_needed_last() -> None:
    assert belady_loads(problem("20201", "111", 1, 1, residents=("0", "1"))) == 2
    assert belady_loads(problem("21210", "111", 1, 1, residents=("0", "1"))) == 2


def test_a_case_that_is_too_large_is_told_and_not_guessed() -> None:
    case = problem("0123456701234567", "11111111", 2, 2, 3)

    assert optimal_loads(case, most_states=2) is None
    assert optimal_loads(case) is not None


def test_the_lower_bound_takes_all_memory_for_one_and_parts_of_models() -> None:
    apart = problem("010101", "33", 4, 2, residents=("0", ""))

    assert optimal_loads(apart) == 5
    assert lower_bound_loads(apart) == pytest.approx(1)


def test_the_lower_bound_counts_places_where_there_are_few() -> None:
    case = problem("012" * 4, "111", 100, most_models=2)

    assert lower_bound_loads(case) == pytest.approx(optimal_loads(case) or 0)


def test_the_lower_bound_sets_the_dearest_bytes_apart() -> None:
    # The models of one byte alone need 2 + 5 loads at 10; the large one adds its bytes at their price.
    case = problem("010101", "11", 1, costs=(10.0, 1.0))

    assert optimal_loads(case) == 33
    assert lower_bound_loads(case) == pytest.approx(9 * 1 + 1 * 6)


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"requests": (1,)}, "model 1 .9 bytes. fits in no instance"),
        ({"requests": (3,)}, "model 3 is requested; there are 3"),
        ({"requests": (-1,)}, "model -1 is requested"),
        ({"most_models": 0}, "model 0 .4 bytes. fits in no instance"),
        ({"capacities": ()}, "fits in no instance"),
        ({"residents": (frozenset({0, 2}),)}, "models .0, 2. do not fit into 5 bytes"),
        ({"residents": (frozenset(), frozenset())}, "residents of 2 instances of 1"),
        ({"sizes": (4, 0, 4)}, "a size above 0"),
        ({"costs": (1.0, 1.0, -1.0)}, "a cost from 0 up"),
        ({"costs": (1.0,)}, "3 sizes for 1 costs"),
    ],
)
def test_a_problem_that_cannot_be_is_refused(facts: dict[str, object], told: str) -> None:
    possible = {"requests": (0,), "sizes": (4, 9, 4), "costs": (1.0, 1.0, 1.0), "capacities": (5,)}

    LoadProblem(**possible)  # type: ignore[arg-type]  # values of several types
    with pytest.raises(ValueError, match=told):
        LoadProblem(**{**possible, **facts})  # type: ignore[arg-type]  # likewise
