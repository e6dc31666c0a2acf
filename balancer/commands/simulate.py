"""`balancer simulate`: strategies, and fleets, compared in virtual time. Nothing is started or asked; the
same arguments print the same bytes.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from balancer.commands.asking import print_json
from balancer.commands.exit_codes import BAD_USAGE, DONE, FAILED
from balancer.commands.findings_table import render
from balancer.commands.progress import Progress
from balancer.core.device import Device
from balancer.settings.faults import SettingsError
from balancer.settings.scenario import Scenario, ScenarioModel
from balancer.simulator.virtual.findings import Case, CaseFindings, Findings, as_data
from balancer.simulator.virtual.fleets import changed, fleet_name, with_fleet, with_models
from balancer.simulator.virtual.processes import Done, Task, run_all
from balancer.simulator.virtual.report import report
from balancer.simulator.virtual.scenario_file import load_scenario, standard_scenarios, standard_seeds
from balancer.simulator.virtual.shelf import strategy_names

STANDARD = "standard"
HELD_OUT = "held-out"
DEFAULT_SEEDS = "10"
BASELINE = "model_aware_least_connections"
"""The rival that is hardest to beat by what is known of instances alone; see docs/simulate.md."""
_MOST_SEEDS = 1000


def simulate(
    name: str,
    *,
    strategies: Sequence[str],
    seeds: Sequence[int],
    requests: int | None,
    fleets: Sequence[tuple[Device, ...]],
    models: Sequence[ScenarioModel] | None,
    jobs: int,
    as_json: bool,
    html: Path | None,
) -> int:
    """Run every strategy on every fleet of a scenario, or of all that come with the balancer, once for each
    seed, and print how they compare; write the report to `html`. Fails where a run came to nothing."""
    if html is not None and not html.absolute().parent.is_dir():
        print(f"{html}: there is no folder {html.parent}; name a file in one that there is", file=sys.stderr)
        return BAD_USAGE
    try:
        cases = [
            case
            for each in (standard_scenarios() if name == STANDARD else (name,))
            for case in _cases(load_scenario(each), requests, fleets, models, seeds[0])
        ]
    except SettingsError as error:
        print(error, file=sys.stderr)
        return BAD_USAGE
    findings = _run(cases, strategies, seeds, jobs)
    for failure in findings.failures:
        print(failure, file=sys.stderr)
    if not findings.cases:
        return FAILED
    written = html is None or _written(html, findings)
    if as_json:
        print_json(as_data(findings))
    else:
        print(render(findings))
    return FAILED if findings.failures or not written else DONE


def _written(html: Path, findings: Findings) -> bool:
    """Write the report, before anything is printed: what reads the output may fail or go."""
    try:
        html.write_text(report(findings), "utf-8")
    except OSError as error:
        print(f"{html}: cannot be written ({error.strerror})", file=sys.stderr)
        return False
    return True


def parse_strategies(text: str) -> tuple[str, ...]:
    """Strategies from `a,b`, each once, the baseline first. Raises: ValueError, naming all there are."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    known = strategy_names()
    for name in names:
        if name not in known:
            raise ValueError(f"'{name}' is no strategy; there are {', '.join(known)}")
    return names


def default_strategies() -> tuple[str, ...]:
    """All that wait for a free slot, the baseline first."""
    waiting = (name for name in strategy_names() if "@" not in name)
    return tuple(dict.fromkeys((BASELINE, *waiting)))


def parse_seeds(text: str) -> tuple[int, ...]:
    """1 to N, or those that are kept aside. Raises: ValueError, saying what is allowed."""
    if text == HELD_OUT:
        return standard_seeds().held_out
    if not (text.isascii() and text.isdigit() and 0 < int(text[:10]) <= _MOST_SEEDS):
        raise ValueError(f"'{text}' is neither a number of seeds, from 1 to {_MOST_SEEDS}, nor {HELD_OUT}")
    return tuple(range(1, int(text) + 1))


def _cases(
    scenario: Scenario,
    requests: int | None,
    fleets: Sequence[tuple[Device, ...]],
    models: Sequence[ScenarioModel] | None,
    seed: int,
) -> list[Case]:
    if requests is not None:
        scenario = changed(scenario, requests=requests)
    if models is not None:
        scenario = with_models(scenario, models)
    return [
        Case(with_fleet(scenario, gpus, seed=seed), fleet_name(gpus)) for gpus in dict.fromkeys(fleets)
    ] or [Case(scenario)]


def _run(cases: Sequence[Case], strategies: Sequence[str], seeds: Sequence[int], jobs: int) -> Findings:
    """All of it, told in the order of cases, strategies and seeds whatever ends first."""
    tasks = [
        Task(number, case.scenario, strategy, seed)
        for number, case in enumerate(cases)
        for seed in seeds
        for strategy in strategies
    ]
    began = time.monotonic()
    progress = Progress(sum(task.scenario.requests for task in tasks))
    done: dict[tuple[int, str, int], Done] = {}
    try:
        for each in run_all(tasks, jobs=jobs, on_progress=progress.reach):
            done[each.task.case, each.task.strategy, each.task.seed] = each
    finally:
        progress.end()
    cpu = sum(each.cpu_seconds for each in done.values())
    spent = f"{len(tasks)} runs, {cpu:.1f} s of processor time in {time.monotonic() - began:.1f} s"
    print(spent, file=sys.stderr)
    found = [_found(number, case, strategies, seeds, done) for number, case in enumerate(cases)]
    failures = [
        f"{cases[each.task.case].name}, {each.task.strategy}, seed {each.task.seed}: {problem}"
        for each in (done[task.case, task.strategy, task.seed] for task in tasks)
        if (problem := _problem(each))
    ]
    return Findings([each for each in found if each.runs], seeds, failures)


def _found(
    number: int,
    case: Case,
    strategies: Sequence[str],
    seeds: Sequence[int],
    done: dict[tuple[int, str, int], Done],
) -> CaseFindings:
    runs = {
        strategy: [summary for seed in seeds if (summary := done[number, strategy, seed].summary) is not None]
        for strategy in strategies
    }
    return CaseFindings(case, {strategy: made for strategy, made in runs.items() if made})


def _problem(each: Done) -> str:
    """What is wrong with a run, if anything is: it came to nothing, or its figures are not to be trusted."""
    if each.summary is not None and each.summary.slots_out:
        return f"{each.summary.slots_out} leases were never given back"
    return each.failure
