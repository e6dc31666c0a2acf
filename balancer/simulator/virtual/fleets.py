"""The same demand on other hardware: a scenario with its devices or its models replaced."""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby

from balancer.core.device import Device
from balancer.settings.faults import SettingsError
from balancer.settings.groups import GIB
from balancer.settings.layers import flatten, judged
from balancer.settings.scenario import Scenario, ScenarioModel
from balancer.settings.tree import nest
from balancer.settings.values import shown
from balancer.simulator.virtual.demand import arrival_rates, mean_of
from balancer.simulator.virtual.popularity import Popularity
from balancer.simulator.virtual.populations import Population
from balancer.simulator.virtual.scenario_file import checked

_SOURCE = "command line"
_MODELS_FORM = "NAME=SIZE, several with a comma, such as 'llama3:8b=4.7GB,nomic-embed-text=274MB:embedding'"
_EMBEDDING = ":embedding"


def parse_models(text: str) -> tuple[ScenarioModel, ...]:
    """Models from `NAME=SIZE,…`, the most popular first; `:embedding` behind a size makes one that embeds.
    Raises: ValueError, saying what is allowed."""
    return tuple(map(_model, text.split(",")))


def with_models(scenario: Scenario, models: Sequence[ScenarioModel]) -> Scenario:
    """The scenario with these models instead, at the same load. Raises: SettingsError."""
    return changed(scenario, models=[each.model_dump(exclude_unset=True) for each in models])


def with_fleet(scenario: Scenario, gpus: Sequence[Device], *, seed: int) -> Scenario:
    """The scenario on these GPUs, each with as many instances as its first device has. As many sessions begin
    as on its own devices: a load is a share of what a fleet can do, so it is turned into sessions per second
    (as `seed` draws them). Raises: SettingsError."""
    devices = [
        {
            "gpu": name,
            "memory_bytes": memory,
            "count": len(list(alike)),
            "instances": scenario.devices[0].instances,
        }
        for (name, memory), alike in groupby(gpus, key=lambda gpu: (gpu.name, gpu.memory_bytes))
    ]
    workload = scenario.workload.model_dump(exclude_unset=True)
    workload.pop("load", None)
    workload["sessions_per_second"] = sessions_per_second(scenario, seed)
    return changed(scenario, devices=devices, workload=workload)


def fleet_name(gpus: Iterable[Device]) -> str:
    """Such as `2x RTX 4090 24 GiB + RTX 3060 12 GiB`."""
    parts = []
    for (name, memory), alike in groupby(gpus, key=lambda gpu: (gpu.name, gpu.memory_bytes)):
        count = len(list(alike))
        parts.append(f"{f'{count}x ' if count > 1 else ''}{name} {memory / GIB:g} GiB")
    return " + ".join(parts)


def sessions_per_second(scenario: Scenario, seed: int) -> float:
    """How many sessions begin in a second, in the mean."""
    if scenario.workload.sessions_per_second is not None:
        return scenario.workload.sessions_per_second
    numbers = range(len(scenario.workload.populations))
    populations = [Population(scenario, number, seed) for number in numbers]
    rates = arrival_rates(scenario, populations, Popularity(scenario, seed))
    return math.fsum(
        rate * mean_of(population).sessions_per_arrival
        for rate, population in zip(rates, populations, strict=True)
    )


def changed(scenario: Scenario, **changes: object) -> Scenario:
    """The scenario with these settings instead, judged as those of a file are. Raises: SettingsError."""
    layer = judged(flatten(changes, Scenario, _SOURCE), Scenario)
    if layer.faults:
        raise SettingsError(layer.faults)
    kept = scenario.model_dump(exclude_unset=True)
    return checked(Scenario.model_validate(kept | nest(layer.entries)), _SOURCE)


def _model(text: str) -> ScenarioModel:
    name, _, size = text.rpartition("=")
    embeds = size.endswith(_EMBEDDING)
    try:
        return ScenarioModel.model_validate(
            {"name": name.strip(), "size_bytes": size.removesuffix(_EMBEDDING).strip(), "embeds": embeds}
        )
    except ValueError as error:
        raise ValueError(
            f"{shown(text)} is no model; allowed is {_MODELS_FORM}, from 1MiB to 1TiB"
        ) from error
