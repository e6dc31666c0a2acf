"""Two devices against one: what each factor adds to throughput, and what two devices are worth at a load that
one could carry.

The devices are alike, as their rates are not perturbed: else a ratio would tell how fast the second one is.
"""

from __future__ import annotations

from collections.abc import Sequence

from balancer.settings.scenario import Scenario
from balancer.simulator.virtual.demand import mean_of
from balancer.simulator.virtual.fleets import changed, sessions_per_second
from balancer.simulator.virtual.populations import Population
from balancer.simulator.virtual.scenario_file import load_scenario
from tests.benchmarks.scheduler_runs import Cell, Ratio, Runs

_OVERLOAD = 3.0
_AT_EASE = 0.8
_MODELS = [
    {"name": "llama3.1:8b", "size_bytes": 4_900_000_000},
    {"name": "qwen3:14b", "size_bytes": 9_300_000_000},
    {"name": "llama3.2:3b", "size_bytes": 2_000_000_000},
    {"name": "qwen3:8b", "size_bytes": 5_200_000_000},
]
"""With four slots each they fit on two GPUs of 24 GiB and not on one."""

_CHATS, _AGENTS, _SEVERAL, _JOBS = "chats", "agents", "chats with four models", "jobs"
_OF_AGENTS = {"populations": [{"kind": "agent"}]}

_Setup = tuple[int, int, str]
"""Devices of one instance each, slots of a runner, strategy."""
_ONE, _TWO = (1, 4, "adaptive"), (2, 4, "adaptive")
_ONE_MODEL: Sequence[tuple[str, _Setup]] = (
    ("", (1, 1, "round_robin")),
    ("a second device", (2, 1, "round_robin")),
    ("4 slots for 1", (2, 4, "round_robin")),
    ("prefixes: adaptive for round_robin", _TWO),
)
_FOUR_MODELS: Sequence[tuple[str, _Setup]] = (
    ("", (1, 1, "least_connections")),
    ("a second device", (2, 1, "least_connections")),
    ("4 slots for 1", (2, 4, "least_connections")),
    ("residency: model-aware least_connections", (2, 4, "model_aware_least_connections")),
    ("all of adaptive", _TWO),
)
"""Factors, each with those before it."""
_PREFIXES = ("adaptive", "round_robin")


def headline(runs: Runs, requests: int) -> list[Ratio]:
    """Throughput where more is asked than two devices can do, then latency at a load that one can carry."""
    chats = changed(load_scenario("two-devices"), requests=requests, noise={"rates": 0})
    workloads = {
        _CHATS: (chats, [_ONE, *(setup for _, setup in _ONE_MODEL)]),
        _AGENTS: (
            changed(chats, workload=chats.workload.model_dump(exclude_unset=True) | _OF_AGENTS),
            [setup for _, setup in _ONE_MODEL],
        ),
        _SEVERAL: (changed(chats, models=_MODELS), [setup for _, setup in _FOUR_MODELS]),
        _JOBS: (changed(load_scenario("fair-shares"), requests=requests, noise={"rates": 0}), [_ONE, _TWO]),
    }
    runs.make(lambda seed: [each for name in workloads for each in _overloaded(name, *workloads[name], seed)])
    one, two = _name(_CHATS, _ONE), _name(_CHATS, _TWO)
    capacity = dict(zip(runs.seeds, runs.of(one, "tokens"), strict=True))
    agents = changed(workloads[_AGENTS][0], workload=_workload(workloads[_AGENTS][0], load=1))
    by_prefix = [Cell(_of_prefixes(strategy), agents, strategy) for strategy in _PREFIXES]
    runs.make(lambda seed: [*_at_ease(chats, seed, capacity[seed]), *by_prefix])
    jobs = _name(_JOBS, _TWO), _name(_JOBS, _ONE)
    return [
        runs.ratio("answers/s, jobs: 2 devices over 1, same settings", "whole_answers", jobs, goal=1.9),
        runs.ratio("answers/s, chats: 2 devices over 1, same settings", "answers", (two, one), goal=1.9),
        runs.ratio("tokens/s, chats: 2 devices over 1, same settings", "tokens", (two, one), goal=1.9),
        *_factors(runs, _CHATS, _ONE_MODEL),
        *_factors(runs, _AGENTS, _ONE_MODEL),
        *_factors(runs, _SEVERAL, _FOUR_MODELS),
        *_prefixes(runs),
        *_latencies(runs),
        runs.value("devices at work, full load", "busy", two, goal=0.85),
        runs.value("devices at work, load of 0.8 of one", "busy", _ease_name(2)),
        runs.value("the one device at work, the same load", "busy", _ease_name(1)),
    ]


def _factors(runs: Runs, workload: str, steps: Sequence[tuple[str, _Setup]]) -> list[Ratio]:
    """Tokens per second with each factor over those without it, and with all over none."""
    names = [_name(workload, setup) for _, setup in steps]
    ratios = [
        runs.ratio(f"tokens/s, {workload}: {added}", "tokens", (after, before))
        for (added, _), before, after in zip(steps[1:], names, names[1:], strict=False)
    ]
    together = names[-1], names[0]
    return [
        *ratios,
        runs.ratio(f"tokens/s, {workload}: all together", "tokens", together, goal=2.8),
        runs.ratio(f"answers/s, {workload}: all together", "answers", together, goal=2.8),
    ]


def _prefixes(runs: Runs) -> list[Ratio]:
    """Where no more is asked than can be done, so that histories are still cached at the next turn."""
    cells = _of_prefixes(_PREFIXES[0]), _of_prefixes(_PREFIXES[1])
    return [
        runs.ratio(f"tokens/s, agents, load of 1: {' for '.join(_PREFIXES)}", "tokens", cells),
        *(
            runs.ratio(f"{told}, agents, load of 1: {' for '.join(_PREFIXES)}", key, cells, at_least=False)
            for told, key in (("TTFT, mean", "ttft_mean"), ("whole answer, mean", "total_mean"))
        ),
    ]


def _latencies(runs: Runs) -> list[Ratio]:
    cells = _ease_name(2), _ease_name(1)
    return [
        runs.ratio(f"{told}: 2 devices over 1, load of 0.8 of one", key, cells, goal=0.6, at_least=False)
        for told, key in (
            ("TTFT, mean", "ttft_mean"),
            ("TTFT, p95", "ttft_p95"),
            ("whole answer, mean", "total_mean"),
            ("whole answer, p95", "total_p95"),
        )
    ]


def _overloaded(workload: str, scenario: Scenario, setups: Sequence[_Setup], seed: int) -> list[Cell]:
    """As many sessions for each setup as overload the scenario's own devices."""
    full = changed(scenario, workload=_workload(scenario, load=_OVERLOAD))
    pace = sessions_per_second(full, seed)
    return [_cell(_name(workload, setup), full, setup, pace) for setup in setups]


def _at_ease(scenario: Scenario, seed: int, capacity: float) -> list[Cell]:
    """One device and two at a share of the tokens per second that one has made under full load."""
    mean = mean_of(Population(scenario, 0, seed))
    tokens_per_session = mean.output_tokens * mean.requests_per_arrival / mean.sessions_per_arrival
    pace = _AT_EASE * capacity / tokens_per_session
    return [_cell(_ease_name(setup[0]), scenario, setup, pace) for setup in (_ONE, _TWO)]


def _cell(name: str, scenario: Scenario, setup: _Setup, pace: float) -> Cell:
    """With so many sessions per second, whatever the devices."""
    devices, slots, strategy = setup
    told = changed(
        scenario,
        devices=[{**scenario.devices[0].model_dump(exclude_unset=True), "count": devices}],
        instances={"slots": slots},
        workload=_workload(scenario, sessions_per_second=pace),
    )
    return Cell(name, told, strategy)


def _workload(scenario: Scenario, **arrivals: float) -> dict[str, object]:
    kept = scenario.workload.model_dump(exclude_unset=True, exclude={"load", "sessions_per_second"})
    return kept | arrivals


def _name(workload: str, setup: _Setup) -> str:
    devices, slots, strategy = setup
    return f"{workload}, devices {devices}, slots {slots}, {strategy}"


def _of_prefixes(strategy: str) -> str:
    return f"agents, load of 1, devices 2, {strategy}"


def _ease_name(devices: int) -> str:
    return f"load of 0.8 of one, devices {devices}"
