"""What `balancer simulate` prints for people: how each strategy did, and how it compares with the first."""

from collections.abc import Iterator
from statistics import median

from balancer.commands.tables import table
from balancer.simulator.virtual.comparison import FIGURES, UTILISATION, Figure
from balancer.simulator.virtual.findings import CaseFindings, Findings, FleetFindings, median_of
from balancer.simulator.virtual.wording import quantity, times, with_interval, won

_TOLD = {
    "answered": FIGURES["answered_share"],
    "good": FIGURES["good_share"],
    "goodput": FIGURES["goodput"],
    "TTFT p50": FIGURES["ttft_p50"],
    "p95": FIGURES["ttft_p95"],
    "p99": FIGURES["ttft_p99"],
    "per token": FIGURES["token_mean"],
    "loads": FIGURES["loads"],
    "cached": FIGURES["hits_of_shared"],
    "fair": FIGURES["fairness"],
    "busy": UTILISATION,
}
_COMPARED = {
    "TTFT p50": FIGURES["ttft_p50"],
    "TTFT p95": FIGURES["ttft_p95"],
    "TTFT p99": FIGURES["ttft_p99"],
    "goodput": FIGURES["goodput"],
    "loads": FIGURES["loads"],
}
_UNANSWERED = 0.01
"""From such a difference on, times of answered requests are not those of the same requests."""


def render(findings: Findings) -> str:
    """One block for each scenario, and one for all of them where there are several."""
    blocks = [_fleets(name, each) for name, each in findings.fleets.items()]
    several = {case.case.name for each in findings.fleets.values() for case in each.cases}
    blocks += [_case(each) for each in findings.cases if each.case.name not in several or each.comparisons]
    if len(findings.cases) > 1 and findings.overall and not findings.fleets:
        blocks.append(_overall(findings))
    return "\n\n".join("\n".join(block) for block in blocks)


def _case(found: CaseFindings) -> Iterator[str]:
    runs = next(iter(found.runs.values()))
    yield f"{found.case.name}: {runs[0].requests} requests a run, {len(runs)} seeds, their median"
    yield from table(
        ["strategy", *_TOLD],
        [
            [strategy, *(quantity(median_of(made, each), each) for each in _TOLD.values())]
            for strategy, made in found.runs.items()
        ],
    )
    if not found.comparisons:
        return
    yield ""
    yield f"over {found.baseline}: geometric mean of ratios, 95 % interval, seeds in which it was better"
    yield from table(
        ["strategy", *_COMPARED],
        [
            [strategy, *(f"{with_interval(by[each.key])} {won(by[each.key])}" for each in _COMPARED.values())]
            for strategy, by in found.comparisons.items()
        ],
    )
    yield from _notes(found)


def _notes(found: CaseFindings) -> Iterator[str]:
    """What makes a comparison less than it seems."""
    share = FIGURES["answered_share"]
    answered = median_of(found.runs[found.baseline], share)
    for strategy, by in found.comparisons.items():
        theirs = median_of(found.runs[strategy], share)
        if abs(theirs - answered) >= _UNANSWERED:
            told = f"{quantity(theirs, share)} of its requests, {found.baseline} {quantity(answered, share)}"
            yield f"note: {strategy} answered {told}: TTFT is that of answered ones"
        seeds, all_seeds = len(by["goodput"].seeds), len(found.runs[found.baseline])
        if seeds < all_seeds:
            yield f"note: {strategy} is compared over {seeds} of {all_seeds} seeds"
        for label, figure in _COMPARED.items():
            if by[figure.key].without:
                yield f"note: {strategy} and the baseline have no {label} in {by[figure.key].without} seeds"
    yield from _floor(found)
    for strategy, each in found.of_clairvoyant.items():
        yield f"note: {strategy} has {with_interval(each)} of the clairvoyant's goodput"


def _floor(found: CaseFindings) -> Iterator[str]:
    """What nothing can go below; medians over the seeds."""
    floors = [each.floor_ttft_seconds for each in found.runs[found.baseline] if each.floor_ttft_seconds]
    if floors:
        p50 = quantity(median(each.p50 for each in floors), FIGURES["ttft_p50"])
        p99 = quantity(median(each.p99 for each in floors), FIGURES["ttft_p99"])
        yield f"note: the floor of TTFT, alone with an infinite cache, is {p50} (p50) and {p99} (p99)"


def _fleets(name: str, found: FleetFindings) -> Iterator[str]:
    first, *_ = found.cases
    yield f"{name}: the same sessions on each fleet, their median (and the ratio to the first fleet)"
    for strategy in first.runs:
        rows = []
        for label, figure in _TOLD.items():
            cells = [
                _fleet_cell(found, case, strategy, figure) for case in found.cases if strategy in case.runs
            ]
            rows.append([label, *cells])
        yield ""
        yield from table(
            [strategy, *(each.case.fleet for each in found.cases if strategy in each.runs)], rows
        )


def _fleet_cell(found: FleetFindings, case: CaseFindings, strategy: str, figure: Figure) -> str:
    told = quantity(median_of(case.runs[strategy], figure), figure)
    compared = found.comparisons.get(case.case.fleet, {}).get(strategy, {}).get(figure.key)
    return f"{told} ({with_interval(compared)})" if compared else told


def _overall(findings: Findings) -> Iterator[str]:
    yield f"all scenarios, over {findings.cases[0].baseline}: geometric mean, and the worst scenario"
    yield from table(
        ["strategy", *_COMPARED],
        [
            [
                strategy,
                *(f"{times(by[each.key].mean)}, {times(by[each.key].worst)}" for each in _COMPARED.values()),
            ]
            for strategy, by in findings.overall.items()
        ],
    )
