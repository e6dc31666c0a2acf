"""Rows, facts and summaries of runs that never were, for tests of what is made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec

from balancer.settings.scenario import Scenario, ScenarioObjectives
from balancer.simulator.virtual.findings import Case, CaseFindings
from balancer.simulator.virtual.outcomes import Outcome, Outcomes, Request, RunFacts
from balancer.simulator.virtual.statistics import Summary, summarize

TINY = Scenario.model_validate(
    {
        "name": "tiny",
        "requests": 60,
        "devices": [{"gpu": "RTX 4090", "count": 2}],
        "models": [{"name": "a:8b", "size_bytes": 4_700_000_000}],
        "workload": {"populations": [{"kind": "chat"}]},
    }
)


def request(**changes: Any) -> Request:
    """A chat that was answered well, but for the changes."""
    usual: dict[str, Any] = {
        "arrived_at": 0.0,
        "client": 0,
        "model": 0,
        "priority": 1,
        "outcome": Outcome.OK,
        "embeds": False,
        "prompt_tokens": 100,
        "output_tokens": 11,
        "shared_tokens": 0,
        "cached_tokens": 0,
        "ttft_seconds": 0.5,
        "total_seconds": 1.0,
        "queued_seconds": 0.0,
        "load_seconds": 0.0,
        "attempts": 1,
        "instance": 0,
    }
    made = Request(**{**usual, **changes})
    if made.outcome != Outcome.OK and "ttft_seconds" not in changes:
        made.ttft_seconds = math.nan
    return made


def outcomes_of(requests: Iterable[Request]) -> Outcomes:
    made = Outcomes()
    for each in requests:
        made.add(*msgspec.structs.astuple(each))
    return made


def facts(**changes: Any) -> RunFacts:
    usual: dict[str, Any] = {
        "strategy": "a",
        "seed": 1,
        "virtual_seconds": 100.0,
        "loads": 4,
        "evictions": 2,
        "load_seconds": 20.0,
        "wasted_load_seconds": 5.0,
        "busy_seconds": (50.0, 100.0),
        "decisions": 7,
        "events": 9,
        "cpu_seconds": 0.1,
    }
    return RunFacts(**{**usual, **changes})


def summary(
    requests: Iterable[Request] = (), *, objectives: ScenarioObjectives | None = None, **changes: Any
) -> Summary:
    """What a run with these requests comes to."""
    return summarize(outcomes_of(requests), facts(**changes), objectives or ScenarioObjectives())


def case_findings(
    *strategies: tuple[str, float], seeds: int = 5, fleet: str = "", scenario: Scenario = TINY
) -> CaseFindings:
    """One case in which each strategy has so many seconds to the first byte, more with each seed."""
    return CaseFindings(
        Case(scenario, fleet),
        {
            name: [
                summary(
                    [
                        request(
                            ttft_seconds=seconds * seed * (1 + part / 50), total_seconds=seconds * 60 * seed
                        )
                        for part in range(50)
                    ],
                    strategy=name,
                    seed=seed,
                    loads=round(seconds * 10) + seed,
                )
                for seed in range(1, seeds + 1)
            ]
            for name, seconds in strategies
        },
    )
