"""`python -m tests.benchmarks.scheduler`: what admission and the scheduler are worth, in virtual time.

`overload` holds three times what a fleet can do against nine tenths of it, `fairness` fair shares against the
order of arrival, `headline` two devices against one. What each figure means stands in docs/benchmarks.md.
Nothing fails for a figure.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import msgspec

from balancer.commands.simulate import HELD_OUT, parse_seeds
from balancer.core.ticket import Priority
from balancer.settings.faults import SettingsError
from balancer.simulator.virtual.fleets import changed
from balancer.simulator.virtual.processes import prompts_of
from balancer.simulator.virtual.scenario_file import load_scenario, standard_seeds
from balancer.simulator.virtual.statistics import PROMPT_LENGTHS, terciles_of
from balancer.simulator.virtual.workload import sessions
from tests.benchmarks.scheduler_headline import headline
from tests.benchmarks.scheduler_runs import Cell, Ratio, Runs

_TUNING = "tuning"
_LOADS = (3.0, 0.9)
_ENDS = ("ok", "QueueFull", "QueueTooLong", "Shed", "expired", "cancelled", "failed")
_TOLD = (
    *("answers", "tokens", "busy", "cached", "loads", "longest_wait"),
    *("ttft_mean", "ttft_p95", "total_mean", "total_p95", "jain"),
    *(f"{what}_{length}" for what in ("good", "share") for length in PROMPT_LENGTHS),
    *(f"{priority}/{end}" for priority in Priority for end in _ENDS),
)
"""Of each cell, where there is any."""


def overload(runs: Runs, requests: int) -> list[Ratio]:
    """Goodput of the interactive class. At the higher load there are more requests, so that sessions begin
    for as long."""
    scenario = changed(load_scenario("overload"), requests=requests)
    cuts = terciles_of(
        length
        for seed in runs.seeds
        for session in sessions(scenario, seed)
        if session.priority is Priority.INTERACTIVE
        for length in prompts_of(session)
    )
    workload = scenario.workload.model_dump(exclude_unset=True)
    cells = [
        Cell(
            f"load {load}",
            changed(
                scenario,
                requests=round(requests * load / min(_LOADS)),
                workload=workload | {"load": load},
            ),
            "adaptive",
            cuts=cuts,
        )
        for load in _LOADS
    ]
    runs.make(lambda _: cells)
    over, below = (cell.name for cell in cells)
    bounds = (f"up to {cuts[0]} tokens", f"up to {cuts[1]}", f"above {cuts[1]}")
    return [
        *(
            runs.ratio(f"interactive goodput, prompts {bound}", f"good_{each}", (over, below), goal=0.95)
            for each, bound in zip(PROMPT_LENGTHS, bounds, strict=True)
        ),
        *(runs.value(f"devices at work, {cell.name}", "busy", cell.name) for cell in cells),
    ]


def fairness(runs: Runs, requests: int) -> list[Ratio]:
    """Jain's index over backlogged clients, and what it costs."""
    scenario = changed(load_scenario("fair-shares"), requests=requests)
    fair, plain = "fair shares", "order of arrival"
    runs.make(lambda _: [Cell(fair, scenario, "adaptive"), Cell(plain, scenario, "adaptive", fair=False)])
    return [
        runs.value("Jain's index, fair shares", "jain", fair, goal=0.98),
        runs.value("Jain's index, order of arrival", "jain", plain),
        runs.ratio("answers/s of the whole run", "whole_answers", (fair, plain), goal=0.97),
        runs.ratio("tokens/s of the whole run", "whole_tokens", (fair, plain), goal=0.97),
    ]


EXPERIMENTS: Mapping[str, Callable[[Runs, int], list[Ratio]]] = {
    "overload": overload,
    "fairness": fairness,
    "headline": headline,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 2 for arguments that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scheduler", description=__doc__)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument(
        "--seeds", default=_TUNING, help=f"{_TUNING}, {HELD_OUT}, or N for 1 to N ({_TUNING})"
    )
    parser.add_argument("--requests", type=int, default=4000, help="of each run, at the lower load (4000)")
    parser.add_argument("--json", action="store_true", help="everything that was found, for programs")
    chosen = parser.parse_args(arguments)
    try:
        seeds = standard_seeds().tuning if chosen.seeds == _TUNING else parse_seeds(chosen.seeds)
        runs = Runs(seeds)
        ratios = EXPERIMENTS[chosen.experiment](runs, chosen.requests)
    except (SettingsError, ValueError) as error:
        parser.error(str(error))
    command = f"{parser.prog} {chosen.experiment} --seeds {chosen.seeds} --requests {chosen.requests}"
    if chosen.json:
        told = {"command": command, "seeds": seeds, "ratios": ratios, "figures": runs.figures}
        print(json.dumps(msgspec.json.decode(msgspec.json.encode(told)), indent=2))
    else:
        print(report(command, ratios, runs))
    return 0


def report(command: str, ratios: Sequence[Ratio], runs: Runs) -> str:
    """For people: the ratios, and under them the medians of each cell."""
    lines = [f"{command}: seeds {', '.join(map(str, runs.seeds))}, virtual time", ""]
    lines += [
        f"{each.told:<75} {each.mean:6.3f} [{each.low:.3f}, {each.high:.3f}], "
        f"worst {each.worst:.3f}{_goal(each)}"
        for each in ratios
    ]
    for name in runs.figures:
        lines += ["", f"{name}: median [least to most] over the seeds"]
        lines += [
            f"  {figure:<26} {_spread(values)}" for figure in _TOLD if (values := _known(runs, name, figure))
        ]
    return "\n".join(lines)


def _goal(each: Ratio) -> str:
    if each.goal is None or math.isnan(each.mean):
        return ""
    met = each.mean >= each.goal if each.at_least else each.mean <= each.goal
    return f"; goal at {'least' if each.at_least else 'most'} {each.goal:g}: {'met' if met else 'not met'}"


def _known(runs: Runs, cell: str, figure: str) -> list[float]:
    """Of the seeds that have the figure; none where it is always 0."""
    values = [each for each in runs.of(cell, figure) if not math.isnan(each)]
    return values if any(values) else []


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.4g} [{min(values):.4g} to {max(values):.4g}]"


if __name__ == "__main__":
    sys.exit(main())
