"""Loads that cannot be avoided, of random cases: the optimum is that of trying everything, and lies between
the bound below it and Belady's rule above."""

from functools import cache
from itertools import combinations

from hypothesis import given, reject
from hypothesis import settings as examples
from hypothesis import strategies as st

from balancer.simulator.virtual.model_loads import (
    LoadProblem,
    belady_loads,
    lower_bound_loads,
    optimal_loads,
)

SLACK = 1e-6


@st.composite
def problems(draw: st.DrawFn, *, most_requests: int, most_models: int, most_instances: int) -> LoadProblem:
    models = draw(st.integers(1, most_models))
    numbers = st.integers(0, models - 1)
    capacities = tuple(draw(st.lists(st.integers(2, 12), min_size=1, max_size=most_instances)))
    starts = st.one_of(st.just(()), st.tuples(*[st.frozensets(numbers, max_size=2) for _ in capacities]))
    try:
        return LoadProblem(
            requests=tuple(draw(st.lists(numbers, max_size=most_requests))),
            sizes=tuple(draw(st.lists(st.integers(1, 8), min_size=models, max_size=models))),
            costs=tuple(
                draw(st.lists(st.sampled_from((0.5, 1.0, 2.0, 7.0)), min_size=models, max_size=models))
            ),
            capacities=capacities,
            residents=draw(starts),
            most_models=draw(st.sampled_from((None, 1, 2, 3))),
        )
    except ValueError:
        reject()


def tried(problem: LoadProblem) -> float:
    """The cheapest of all ways to load anything anywhere, with whatever else put out, before each request."""
    subsets = [
        frozenset(each)
        for size in range(len(problem.sizes) + 1)
        for each in combinations(range(len(problem.sizes)), size)
    ]

    @cache
    def cheapest(at: int, placed: tuple[frozenset[int], ...]) -> float:
        if at == len(problem.requests):
            return 0.0
        model = problem.requests[at]
        costs = [cheapest(at + 1, placed)] if any(model in each for each in placed) else []
        for number, capacity in enumerate(problem.capacities):
            if model in placed[number]:
                continue
            for rest in subsets:
                if rest <= placed[number] and problem.fits(rest | {model}, capacity):
                    after = (*placed[:number], rest | {model}, *placed[number + 1 :])
                    costs.append(problem.costs[model] + cheapest(at + 1, after))
        return min(costs)

    return cheapest(0, tuple(models for _, models in problem.start))


@examples(deadline=None, max_examples=150, derandomize=True)
@given(problems(most_requests=7, most_models=4, most_instances=2))
def test_the_optimum_is_the_cheapest_of_all_that_can_be_tried(problem: LoadProblem) -> None:
    optimum = optimal_loads(problem)

    assert optimum is not None
    assert abs(optimum - tried(problem)) < SLACK


@examples(deadline=None, max_examples=400, derandomize=True)
@given(problems(most_requests=40, most_models=6, most_instances=3))
def test_the_optimum_lies_between_the_bound_and_beladys_rule(problem: LoadProblem) -> None:
    optimum = optimal_loads(problem)

    assert optimum is not None
    assert lower_bound_loads(problem) <= optimum + SLACK
    assert optimum <= belady_loads(problem) + SLACK


@examples(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 5))
def test_all_three_agree_for_one_instance_and_models_that_are_alike(
    requests: list[int], capacity: int
) -> None:
    problem = LoadProblem(requests=tuple(requests), sizes=(1,) * 6, costs=(1.0,) * 6, capacities=(capacity,))

    assert optimal_loads(problem) == belady_loads(problem)
    assert abs(lower_bound_loads(problem) - belady_loads(problem)) < SLACK
