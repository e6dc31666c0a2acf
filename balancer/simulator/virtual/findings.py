"""What an experiment has found: the summaries of its runs, and how they compare. Tables, JSON and the HTML
report are all written from this.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import msgspec

from balancer.settings.scenario import Scenario
from balancer.simulator.virtual.comparison import FIGURES, Comparison, Figure, Overall, across, compare
from balancer.simulator.virtual.statistics import CURVE_PER_MILLE, Summary

CLAIRVOYANT = "clairvoyant"
"""The strategy whose goodput counts as what the fleet could have done."""


@dataclass(frozen=True, slots=True)
class Case:
    """One scenario on one fleet; `fleet` is empty for the scenario's own."""

    scenario: Scenario
    fleet: str = ""

    @property
    def name(self) -> str:
        """As tables call it."""
        return f"{self.scenario.name}, {self.fleet}" if self.fleet else self.scenario.name


@dataclass(frozen=True)
class CaseFindings:
    """The runs of one case by strategy, each in the order of their seeds. The first strategy that has any is
    the baseline."""

    case: Case
    runs: Mapping[str, Sequence[Summary]]

    @property
    def baseline(self) -> str:
        """What the others are compared with."""
        return next(iter(self.runs))

    @cached_property
    def comparisons(self) -> Mapping[str, Mapping[str, Comparison]]:
        """Strategy and figure, over the baseline's; the baseline itself is not among them."""
        return {
            strategy: compared(runs, self.runs[self.baseline])
            for strategy, runs in self.runs.items()
            if strategy != self.baseline
        }

    @cached_property
    def of_clairvoyant(self) -> Mapping[str, Comparison]:
        """Goodput over that of the clairvoyant strategy, by strategy; empty where that was not run."""
        if CLAIRVOYANT not in self.runs:
            return {}
        best = self.runs[CLAIRVOYANT]
        return {
            strategy: compare(runs, best, FIGURES["goodput"])
            for strategy, runs in self.runs.items()
            if strategy != CLAIRVOYANT
        }


@dataclass(frozen=True)
class Findings:
    """All of them. `failures` name the runs that came to nothing, and why."""

    cases: Sequence[CaseFindings]
    seeds: Sequence[int]
    failures: Sequence[str] = field(default=())

    @cached_property
    def overall(self) -> Mapping[str, Mapping[str, Overall]]:
        """Strategy and figure over all cases that have both the strategy and the same baseline."""
        if len({each.baseline for each in self.cases}) != 1:
            return {}
        strategies = dict.fromkeys(name for each in self.cases for name in each.comparisons)
        return {
            strategy: {
                figure.key: across(self._by_case(strategy, figure), figure) for figure in FIGURES.values()
            }
            for strategy in strategies
        }

    def _by_case(self, strategy: str, figure: Figure) -> dict[str, Comparison]:
        return {
            each.case.name: each.comparisons[strategy][figure.key]
            for each in self.cases
            if strategy in each.comparisons
        }

    @cached_property
    def fleets(self) -> Mapping[str, "FleetFindings"]:
        """By scenario, those that were run on several fleets."""
        found: dict[str, list[CaseFindings]] = {}
        for each in self.cases:
            found.setdefault(each.case.scenario.name, []).append(each)
        return {name: FleetFindings(cases) for name, cases in found.items() if len(cases) > 1}


@dataclass(frozen=True)
class FleetFindings:
    """The cases of one scenario on several fleets; the first of them is the baseline."""

    cases: Sequence[CaseFindings]

    @cached_property
    def comparisons(self) -> Mapping[str, Mapping[str, Mapping[str, Comparison]]]:
        """Fleet, strategy and figure, over the same strategy's on the first fleet."""
        first, *others = self.cases
        return {
            other.case.fleet: {
                strategy: compared(runs, first.runs[strategy])
                for strategy, runs in other.runs.items()
                if strategy in first.runs
            }
            for other in others
        }


def compared(runs: Sequence[Summary], baseline: Sequence[Summary]) -> dict[str, Comparison]:
    """Every figure over the baseline's."""
    return {figure.key: compare(runs, baseline, figure) for figure in FIGURES.values()}


def median_of(runs: Sequence[Summary], figure: Figure) -> float:
    """The median over the runs that have the figure, of an even number the lower one; NaN where none has."""
    values = sorted(value for value in map(figure.of, runs) if not math.isnan(value))
    return values[(len(values) - 1) // 2] if values else math.nan


def as_data(findings: Findings) -> object:
    """Everything as plain data for JSON. What does not exist is null; what is infinite, `"infinite"`."""
    return _plain(
        {
            "seeds": list(findings.seeds),
            "curve_per_mille": list(CURVE_PER_MILLE),
            "figures": {
                each.key: {"label": each.label, "unit": each.unit, "lower_is_better": each.lower_is_better}
                for each in FIGURES.values()
            },
            "cases": [_case_data(each) for each in findings.cases],
            "overall": findings.overall,
            "fleets": {
                scenario: {"baseline": each.cases[0].case.fleet, "comparisons": each.comparisons}
                for scenario, each in findings.fleets.items()
            },
            "failures": list(findings.failures),
        }
    )


def _case_data(found: CaseFindings) -> dict[str, object]:
    return {
        "name": found.case.name,
        "fleet": found.case.fleet,
        "scenario": found.case.scenario.model_dump(mode="json"),
        "baseline": found.baseline,
        "runs": found.runs,
        "comparisons": found.comparisons,
        "of_clairvoyant": found.of_clairvoyant,
    }


def _plain(value: object) -> object:
    if isinstance(value, msgspec.Struct):
        return _plain(msgspec.structs.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "infinite" if math.isinf(value) else None
    return value
