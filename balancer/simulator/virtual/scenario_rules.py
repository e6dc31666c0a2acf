"""The rules between several settings of a scenario."""

from collections.abc import Iterator

from balancer.provisioning.tiers import gib
from balancer.settings.faults import unknown
from balancer.settings.scenario import PopulationKind, Scenario, ScenarioPopulation
from balancer.settings.values import shown
from balancer.simulator.virtual.hardware import (
    instance_count,
    memory_bytes,
    needed_bytes,
    nominal_decode,
)

MOST_INSTANCES = 1024
_LEAST_SHARE = 0.001
Broken = tuple[str, str, str]
"""The key, what is wrong, what is allowed."""

_CONVERSATION = frozenset(("inputs", "job_requests"))
_MEANINGLESS = {
    PopulationKind.CHAT: _CONVERSATION,
    PopulationKind.AGENT: _CONVERSATION,
    PopulationKind.EMBEDDING: frozenset(
        ("apps", "shared_tokens", "turns", "think_seconds", "output_tokens", "job_requests")
    ),
    PopulationKind.BATCH: frozenset(("turns", "think_seconds", "inputs")),
}


def broken_rules(scenario: Scenario) -> Iterator[Broken]:
    """Every rule that the scenario breaks; none that hangs on hardware which is not understood."""
    yield from _empty(scenario)
    hardware = list(_devices(scenario))
    yield from hardware
    yield from _models(scenario, sized=not hardware)
    yield from _populations(scenario)
    yield from _instances_named(scenario)
    if 0 < scenario.workload.foreign_share < _LEAST_SHARE:
        problem = f"{scenario.workload.foreign_share:g} is out of range"
        yield "workload.foreign_share", problem, f"0, or a number from {_LEAST_SHARE} to 0.9"
    if scenario.workload.sessions_per_second is not None and "load" in scenario.workload.model_fields_set:
        yield "workload.load", "is given beside sessions_per_second", "one of the two"


def _empty(scenario: Scenario) -> Iterator[Broken]:
    lists = {
        "devices": scenario.devices,
        "models": scenario.models,
        "workload.populations": scenario.workload.populations,
    }
    for key, items in lists.items():
        if not items:
            yield key, "is empty", "at least one"


def _devices(scenario: Scenario) -> Iterator[Broken]:
    for index, device in enumerate(scenario.devices):
        try:
            memory_bytes(device)
        except ValueError as error:
            yield f"devices[{index}].gpu", str(error), "a known GPU of one size, or memory_bytes beside it"
        try:
            for model in scenario.models:
                if model.decode_tokens_per_second is None and not (
                    model.embeds and model.prefill_tokens_per_second
                ):
                    nominal_decode(device, model)
        except ValueError as error:
            yield f"devices[{index}].gpu", str(error), "a known GPU, or the rates of every model"
    count = instance_count(scenario)
    if count > MOST_INSTANCES:
        yield "devices", f"{count} instances are described", f"at most {MOST_INSTANCES}"


def _models(scenario: Scenario, *, sized: bool) -> Iterator[Broken]:
    first: dict[str, int] = {}
    largest = max(map(memory_bytes, scenario.devices), default=0) if sized else 0
    for index, model in enumerate(scenario.models):
        if model.name in first:
            problem = f"{shown(model.name)} is the name of models[{first[model.name]}] already"
            yield f"models[{index}].name", problem, "each model once"
        first.setdefault(model.name, index)
        needed = needed_bytes(scenario, model)
        if largest and needed > largest:
            yield (
                f"models[{index}].size_bytes",
                f"{shown(model.name)} takes {gib(needed)} with all of its slots and fits on no device",
                f"at most {gib(largest)}, with fewer slots or a shorter context perhaps",
            )


def _populations(scenario: Scenario) -> Iterator[Broken]:
    embedding = {model.name: model.embeds for model in scenario.models}
    for index, population in enumerate(scenario.workload.populations):
        key = f"workload.populations[{index}]"
        embeds = population.kind is PopulationKind.EMBEDDING
        for place, name in enumerate(population.models):
            if name not in embedding:
                _, allowed = unknown(name, embedding)
                yield f"{key}.models[{place}]", f"{shown(name)} is none of the models", allowed
            elif embedding[name] is not embeds:
                problem = f"{shown(name)} {'embeds' if embedding[name] else 'does not embed'}"
                yield f"{key}.models[{place}]", problem, f"a model for kind {population.kind}"
        if scenario.models and not population.models and embeds not in embedding.values():
            allowed = "a model with embeds: true" if embeds else "a model without embeds"
            yield (
                f"{key}.kind",
                f"kind {population.kind} has no model to ask for",
                f"among the models, {allowed}",
            )
        yield from _meaningless(population, key)


def _meaningless(population: ScenarioPopulation, key: str) -> Iterator[Broken]:
    for name in sorted(population.model_fields_set & _MEANINGLESS[population.kind]):
        yield f"{key}.{name}", f"means nothing for kind {population.kind}", "nothing there"


def _instances_named(scenario: Scenario) -> Iterator[Broken]:
    last = instance_count(scenario) - 1
    named = [(f"faults[{index}].instance", each.instance) for index, each in enumerate(scenario.faults)]
    named += [
        (f"workload.foreign_instances[{index}]", each)
        for index, each in enumerate(scenario.workload.foreign_instances)
    ]
    for key, index in named:
        if index is not None and not 0 <= index <= last:
            yield key, f"there is no instance {index}", f"a whole number from 0 to {last}"
