"""The loads of models that a sequence of requests makes necessary: the exact optimum of small cases, a lower
bound and an upper reference for any. All three know the future; no balancer does.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from itertools import pairwise
from math import inf

import msgspec

_ROUNDING = 1e-9


class LoadProblem(msgspec.Struct, frozen=True, kw_only=True):
    """Requests for models in the order in which they are served, and where models can be resident.

    Models are numbers from 0 up; `sizes` (bytes) and `costs` (of one load: its seconds, or 1 to count
    loads) are in their order, `capacities` (bytes) and `residents` (at the start; none by default) in that
    of the instances. `most_models` is how many one instance keeps at most, None without a limit. To serve a
    request its model must be resident at any one instance; what is not needed can leave at any time.

    All that is said of it holds for this order: who serves in another one may need fewer loads.
    Raises ValueError where a model is requested that is none or fits nowhere, or the start is impossible.
    """

    requests: tuple[int, ...]
    sizes: tuple[int, ...]
    costs: tuple[float, ...]
    capacities: tuple[int, ...]
    residents: tuple[frozenset[int], ...] = ()
    most_models: int | None = None

    def __post_init__(self) -> None:
        if min(self.sizes, default=1) <= 0 or min(self.costs, default=0) < 0:
            raise ValueError("every model needs a size above 0 and a cost from 0 up")
        if len(self.sizes) != len(self.costs):
            raise ValueError(f"{len(self.sizes)} sizes for {len(self.costs)} costs of models")
        if self.residents and len(self.residents) != len(self.capacities):
            raise ValueError(f"residents of {len(self.residents)} instances of {len(self.capacities)}")
        for model in sorted(set(self.requests)):
            if not 0 <= model < len(self.sizes):
                raise ValueError(f"model {model} is requested; there are {len(self.sizes)}")
            if not any(self.fits({model}, capacity) for capacity in self.capacities):
                raise ValueError(f"model {model} ({self.sizes[model]} bytes) fits in no instance")
        for capacity, models in self.start:
            if not self.fits(models, capacity):
                raise ValueError(f"models {sorted(models)} do not fit into {capacity} bytes together")

    @property
    def start(self) -> tuple[tuple[int, frozenset[int]], ...]:
        """The capacity of every instance, and what is resident there at the start."""
        residents = self.residents or (frozenset(),) * len(self.capacities)
        return tuple(zip(self.capacities, residents, strict=True))

    def fits(self, models: Collection[int], capacity: int) -> bool:
        """Whether so much room is enough for them together."""
        few_enough = self.most_models is None or len(models) <= self.most_models
        return few_enough and sum(self.sizes[each] for each in models) <= capacity


_State = tuple[tuple[int, tuple[int, ...]], ...]
"""Capacities with the models resident there, both in order: instances of one capacity are alike."""


def optimal_loads(problem: LoadProblem, *, most_states: int = 10_000) -> float | None:
    """The least that the loads of a problem can cost, exactly; None where more than `most_states`
    placements would have to be followed at once.

    By dynamic programming over what is resident where. Nothing is lost by loading late, only what is
    missing, and putting out no more than must go, as more can go later; nor by putting out what is not
    asked for again. A placement that has cost more than Belady's rule does in all leads to no optimum.
    """
    most = belady_loads(problem) * (1 + _ROUNDING)
    last_asked = {model: at for at, model in enumerate(problem.requests)}
    choices = _choices(problem)
    begin = [(capacity, tuple(sorted(models & last_asked.keys()))) for capacity, models in problem.start]
    costs: dict[_State, float] = {tuple(sorted(begin)): 0.0}
    for at, model in enumerate(problem.requests):
        following: dict[_State, float] = {}
        over = model if last_asked[model] == at else None
        for state, cost in costs.items():
            resident = any(model in models for _, models in state)
            then = cost if resident else cost + problem.costs[model]
            for choice in (state,) if resident else _loaded(state, model, choices):
                after = choice if over is None else _without(choice, over)
                if then <= most and then < following.get(after, inf):
                    following[after] = then
        if len(following) > most_states:
            return None
        costs = following
    return min(costs.values())


_Choices = Callable[[int, tuple[int, ...], int], list[tuple[int, ...]]]


def _choices(problem: LoadProblem) -> _Choices:
    """What can be resident in an instance right after a load there: the model, and of what was there as
    much as fits beside it."""

    @cache
    def choose(capacity: int, models: tuple[int, ...], model: int) -> list[tuple[int, ...]]:
        if not problem.fits({model}, capacity):
            return []
        everything = tuple(sorted((*models, model)))
        if problem.fits(everything, capacity):
            return [everything]
        fewer = (tuple(each for each in models if each != out) for out in models)
        found = {choice for rest in fewer for choice in choose(capacity, rest, model)}
        return [each for each in found if not any(set(each) < set(other) for other in found)]

    return choose


def _loaded(state: _State, model: int, choices: _Choices) -> set[_State]:
    return {
        tuple(sorted((*state[:number], (capacity, after), *state[number + 1 :])))
        for number, (capacity, models) in enumerate(state)
        for after in choices(capacity, models, model)
    }


def _without(state: _State, model: int) -> _State:
    left = [(capacity, tuple(each for each in models if each != model)) for capacity, models in state]
    return tuple(sorted(left))


def belady_loads(problem: LoadProblem) -> float:
    """What the loads cost if those models stay that are asked for soonest, and a load goes where what has
    to leave for it is asked for last: an upper reference for the optimum, and the optimum itself for one
    instance and models of one size and one cost. Source: Belady, A study of replacement algorithms for a
    virtual-storage computer, 1966, for those; the rest is an extension."""
    placed = [(capacity, set(models)) for capacity, models in problem.start]
    uses = _uses(problem.requests)
    spent = 0.0
    for at, model in enumerate(problem.requests):
        if any(model in models for _, models in placed):
            continue
        spent += problem.costs[model]
        best: tuple[tuple[float, float], set[int], set[int]] | None = None
        for capacity, models in placed:
            if not problem.fits({model}, capacity):
                continue
            needed_at = {each: _next(uses, each, at) for each in models}
            out = _needed_last(problem, capacity, model, needed_at)
            soonest = min((needed_at[each] for each in out), default=inf)
            rank = soonest, -sum(problem.costs[each] for each in out)
            if best is None or rank > best[0]:
                best = rank, models, out
        assert best is not None, "a problem has no model that fits nowhere"
        best[1].difference_update(best[2])
        best[1].add(model)
    return spent


def _needed_last(problem: LoadProblem, capacity: int, model: int, needed_at: Mapping[int, float]) -> set[int]:
    """Who of those there leaves for the model so that those that are needed soonest stay."""
    kept = {model}
    for each in sorted(needed_at, key=lambda each: (needed_at[each], each)):
        if problem.fits(kept | {each}, capacity):
            kept.add(each)
    return needed_at.keys() - kept


def lower_bound_loads(problem: LoadProblem) -> float:
    """What the loads cost at least; quick for any size.

    Let all memory be one, and parts of models be loaded. Then a load brings the bytes that are missing, and
    putting out the bytes that are needed last brings the fewest in all: Belady's rule, as all bytes are of
    one size. But bytes of one model cost more than those of another. So take only the models whose bytes
    cost at least so much, and leave out the requests for all others, which needs no more loads of these;
    and count their bytes at what they cost above the next lower cost. Added up over all such groups no byte
    counts for more than it costs. The same holds of whole models in place of bytes where an instance keeps
    only so many. The larger of the two is the bound.
    """
    bound = _layered(problem, problem.sizes, sum(problem.capacities))
    if problem.most_models is not None:
        places = problem.most_models * len(problem.capacities)
        bound = max(bound, _layered(problem, (1,) * len(problem.sizes), places))
    return bound * (1 - _ROUNDING)


def _layered(problem: LoadProblem, sizes: Sequence[int], capacity: int) -> float:
    density = {model: problem.costs[model] / sizes[model] for model in problem.requests}
    levels = sorted({*density.values(), 0.0}, reverse=True)
    bound = 0.0
    for level, lower in pairwise(levels):
        group = {model for model in density if density[model] >= level}
        requests = [model for model in problem.requests if model in group]
        resident = {model for _, models in problem.start for model in models & group}
        bound += (level - lower) * _fewest_bytes(requests, sizes, capacity, resident)
    return bound


def _fewest_bytes(requests: Sequence[int], sizes: Sequence[int], capacity: int, resident: set[int]) -> int:
    """Bytes loaded into one memory that takes parts of models, by putting out what is needed last."""
    uses = _uses(requests)
    held = {model: sizes[model] for model in resident}
    needed_at = {model: _next(uses, model, -1) for model in resident}
    free = capacity - sum(held.values())
    loaded = 0
    for at, model in enumerate(requests):
        missing = sizes[model] - held.get(model, 0)
        loaded += missing
        free -= missing
        held[model], needed_at[model] = sizes[model], at
        while free < 0:
            victim = max(held, key=needed_at.__getitem__)
            out = min(held[victim], -free)
            free += out
            held[victim] -= out
            if not held[victim]:
                del held[victim]
        needed_at[model] = _next(uses, model, at)
    return loaded


def _uses(requests: Sequence[int]) -> dict[int, list[int]]:
    uses: dict[int, list[int]] = {}
    for at, model in enumerate(requests):
        uses.setdefault(model, []).append(at)
    return uses


def _next(uses: Mapping[int, Sequence[int]], model: int, at: int) -> float:
    """When it is asked for after that; infinite where it is not."""
    asked = uses.get(model, ())
    index = bisect_right(asked, at)
    return asked[index] if index < len(asked) else inf
