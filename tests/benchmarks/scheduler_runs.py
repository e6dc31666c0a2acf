"""Runs in virtual time for `tests.benchmarks.scheduler`, and what is measured of each.

Where more is asked than can be done, what counts is how a run goes while sessions still begin, not how it
starts or drains: rates and utilisation are those of its stretch, from a third of the time in which sessions
begin to the end of that time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from unittest.mock import patch

import msgspec

from balancer.admission.fair_shares import FairShares
from balancer.admission.overload import Overload, Pace
from balancer.commands.progress import Progress
from balancer.core.ticket import Priority, Ticket
from balancer.errors import QueueFull
from balancer.settings.scenario import Scenario
from balancer.simulator.virtual.comparison import geometric_mean, interval
from balancer.simulator.virtual.fairness import fairness
from balancer.simulator.virtual.hardware import instances_of
from balancer.simulator.virtual.outcomes import PRIORITIES, Outcome, Outcomes, Request
from balancer.simulator.virtual.run import Run, run
from balancer.simulator.virtual.statistics import PROMPT_LENGTHS, ratio, summarize
from balancer.simulator.virtual.workload import sessions

PROCESSES = 2
_WARM_UP_SHARE = 1 / 3

Figures = Mapping[str, float]


class Cell(msgspec.Struct, frozen=True):
    """What is run once for each seed. Without `fair`, clients are served in the order of arrival. Prompts of
    interactive requests are short up to the first of the `cuts`, in tokens, and long above the second."""

    name: str
    scenario: Scenario
    strategy: str
    fair: bool = True
    cuts: tuple[int, int] = (0, 0)


class Ratio(msgspec.Struct, frozen=True):
    """One figure of a cell over that of another, seed by seed: the geometric mean, its 95 % bootstrap
    interval, and the least favourable seed. `goal` is what the mean is to be at least or, without
    `at_least`, at most."""

    told: str
    goal: float | None
    at_least: bool
    mean: float
    low: float
    high: float
    worst: float
    ratios: tuple[float, ...]


class Runs:
    """The runs of an experiment: the figures of each cell, with the seeds in the same order for all."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = tuple(seeds)
        self.figures: dict[str, list[Figures]] = {}

    def make(self, cells: Callable[[int], Sequence[Cell]]) -> None:
        """Run the cells of each seed, which have the same names for all seeds, two at a time."""
        tasks = [(cell, seed) for seed in self.seeds for cell in cells(seed)]
        progress = Progress(len(tasks))
        with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
            for (cell, _), made in zip(tasks, pool.map(measure, *zip(*tasks, strict=True)), strict=True):
                self.figures.setdefault(cell.name, []).append(made)
                progress.step()
        progress.end()

    def of(self, cell: str, figure: str) -> list[float]:
        """One figure, seed by seed; 0 where a run counted none."""
        return [each.get(figure, 0.0) for each in self.figures[cell]]

    def value(self, told: str, figure: str, cell: str, *, goal: float | None = None) -> Ratio:
        """A figure by itself."""
        values = self.of(cell, figure)
        return _ratio(told, values, [1.0] * len(values), goal, at_least=True)

    def ratio(
        self,
        told: str,
        figure: str,
        cells: tuple[str, str],
        *,
        goal: float | None = None,
        at_least: bool = True,
    ) -> Ratio:
        """A figure of the first cell over that of the second."""
        one, other = cells
        return _ratio(told, self.of(one, figure), self.of(other, figure), goal, at_least=at_least)


def _ratio(
    told: str, values: Sequence[float], to: Sequence[float], goal: float | None, *, at_least: bool
) -> Ratio:
    ratios = [ratio(one, other) for one, other in zip(values, to, strict=True)]
    known = not any(map(math.isnan, ratios))
    worst = (min if at_least else max)(ratios) if known else math.nan
    return Ratio(told, goal, at_least, geometric_mean(ratios), *interval(ratios), worst, tuple(ratios))


def measure(cell: Cell, seed: int) -> Figures:
    """One run. Seconds, and rates per second."""
    refused: Counter[tuple[Priority, str]] = Counter()
    with _watched(refused, fair=cell.fair):
        made = run(cell.scenario, strategy=cell.strategy, seed=seed)
    rows = [made.outcomes.row(index) for index in range(len(made.outcomes))]
    began = [each.starts_at for each in sessions(cell.scenario, seed)]
    first = min(each.arrived_at for each in rows)
    until = first + began[-1] - began[0]
    since = first + _WARM_UP_SHARE * (until - first)
    return {
        **_throughput(rows, since, until),
        **_whole(made, rows),
        **_latency(cell, made, rows, since, until),
        **_ends(rows, refused),
        "busy": busy(cell.scenario, rows, since, until),
    }


@contextmanager
def _watched(refused: Counter[tuple[Priority, str]], *, fair: bool) -> Iterator[None]:
    """Count who is turned away and for what; without `fair` put fair shares out of force."""
    turn_away = Overload.turn_away

    def told(
        self: Overload, ticket: Ticket, pace: Pace | None, now: float
    ) -> tuple[Ticket, QueueFull] | None:
        turned = turn_away(self, ticket, pace, now)
        if turned is not None:
            refused[turned[0].priority, type(turned[1]).__name__] += 1
        return turned

    with ExitStack() as patches:
        patches.enter_context(patch.object(Overload, "turn_away", told))
        if not fair:
            patches.enter_context(patch.object(FairShares, "used", lambda _self, _client: 0.0))
        yield


def _throughput(rows: Sequence[Request], since: float, until: float) -> Figures:
    """Answers that end in the stretch, and the tokens of them."""
    ended = [
        each
        for each in rows
        if each.outcome == Outcome.OK and since <= each.arrived_at + each.total_seconds < until
    ]
    seconds = until - since
    return {
        "answers": ratio(len(ended), seconds),
        "tokens": ratio(sum(each.output_tokens for each in ended), seconds),
        "cached": ratio(sum(e.cached_tokens for e in ended), sum(e.prompt_tokens for e in ended)),
    }


def _whole(made: Run, rows: Sequence[Request]) -> Figures:
    """Of the whole run, from the first arrival to the last end."""
    answered = [each for each in rows if each.outcome == Outcome.OK]
    seconds = made.facts.virtual_seconds
    index, _ = fairness(made.outcomes)
    return {
        "whole_answers": ratio(len(answered), seconds),
        "whole_tokens": ratio(sum(each.output_tokens for each in answered), seconds),
        "jain": index,
        "longest_wait": max(each.queued_seconds for each in rows),
        "loads": made.facts.loads,
    }


def _latency(cell: Cell, made: Run, rows: Sequence[Request], since: float, until: float) -> Figures:
    """Of those that arrive in the stretch; goodput of the interactive ones among them."""
    arrived = [each for each in rows if since <= each.arrived_at < until]
    interactive = [each for each in arrived if PRIORITIES[each.priority] is Priority.INTERACTIVE]
    facts = msgspec.structs.replace(made.facts, virtual_seconds=until - since)
    objectives = cell.scenario.objectives
    all_of_them = summarize(_outcomes(arrived), facts, objectives)
    good = summarize(_outcomes(interactive), facts, objectives, prompt_terciles=cell.cuts).goodput_by_prompt
    return {
        "ttft_mean": all_of_them.ttft_seconds.mean,
        "ttft_p95": all_of_them.ttft_seconds.p95,
        "total_mean": all_of_them.total_seconds.mean,
        "total_p95": all_of_them.total_seconds.p95,
        **{f"good_{length}": good[length].per_second for length in PROMPT_LENGTHS},
        **{f"share_{length}": good[length].share for length in PROMPT_LENGTHS},
    }


def _ends(rows: Sequence[Request], refused: Counter[tuple[Priority, str]]) -> Figures:
    """How many requests of each class ended how, and who were turned away for what."""
    ends = Counter((PRIORITIES[each.priority], Outcome(each.outcome).name.lower()) for each in rows)
    return {f"{priority}/{what}": float(count) for (priority, what), count in (ends + refused).items()}


def busy(scenario: Scenario, rows: Sequence[Request], since: float, until: float) -> float:
    """The share of the stretch in which a device had a request, over devices."""
    on = [shape.device for shape in instances_of(scenario)]
    spans: dict[int, list[tuple[float, float]]] = {device: [] for device in on}
    for each in rows:
        if each.instance >= 0:
            begins, ends = each.arrived_at + each.queued_seconds, each.arrived_at + each.total_seconds
            spans[on[each.instance]].append((max(begins, since), min(ends, until)))
    return ratio(sum(map(_covered, spans.values())), len(spans) * (until - since))


def _covered(spans: list[tuple[float, float]]) -> float:
    """How much the union of spans covers; one that ends before it begins covers nothing."""
    covered, reached = 0.0, -math.inf
    for begins, ends in sorted(spans):
        covered += max(0.0, ends - max(begins, reached))
        reached = max(reached, ends)
    return covered


def _outcomes(rows: Sequence[Request]) -> Outcomes:
    outcomes = Outcomes()
    for each in rows:
        outcomes.add(*msgspec.structs.astuple(each))
    return outcomes
