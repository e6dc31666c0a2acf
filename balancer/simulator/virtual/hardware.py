"""The instances of a scenario: on which device each is, what memory it has, how fast it serves each model.

The rates are nominal: rough figures for sizing, which a scenario can replace by measured ones. A device is
looked up by its name in the capability table.
"""

from collections.abc import Mapping, Sequence

import msgspec

from balancer.core.names import canonical_name
from balancer.core.ticket import InstanceId
from balancer.provisioning.capabilities import capability_of
from balancer.settings.scenario import Scenario, ScenarioDevice, ScenarioModel
from balancer.simulator.memory import predicted_bytes
from balancer.simulator.models import Kind, ModelSpec, weights_of
from balancer.simulator.service_model import ServiceRates

_GIB = 2**30
_BANDWIDTH_SHARE = 0.6
"""What generation gets of the memory's bandwidth. Each token reads all weights once, so that bandwidth over
size is the bound, which no runtime reaches. Rough."""
_PREFILL_PER_DECODE = 30.0
"""Tokens of a prompt that are evaluated in the time in which one stream is given one token. Rough. Source:
calebcoffie.com/benchmarks/gemma-4-e4b-it-gguf: 4191 to 4745 beside 144 tokens/s, llama.cpp, RTX 3090, a 4B
model in Q4_K_M, prompts of 600 to 850 tokens."""


class InstanceShape(msgspec.Struct, frozen=True, kw_only=True):
    """One instance. Instances of one `device` share its memory, all of `memory_bytes`, and its time; `rates`
    by model's name are those of the device with nothing else to do."""

    id: InstanceId
    device: int
    memory_bytes: int
    rates: Mapping[str, ServiceRates]


def instances_of(scenario: Scenario) -> tuple[InstanceShape, ...]:
    """Every instance, in the order of the devices that the scenario lists.

    Raises: ValueError, where memory or rates are neither given nor known by the GPU's name; a checked
    scenario has none such.
    """
    shapes: list[InstanceShape] = []
    number = 0
    for group in scenario.devices:
        memory = memory_bytes(group)
        rates = {model.name: _rates(scenario, group, model) for model in scenario.models}
        for device in range(number, number + group.count):
            shapes += (
                InstanceShape(
                    id=InstanceId(f"gpu{device}" if group.instances == 1 else f"gpu{device}-{index}"),
                    device=device,
                    memory_bytes=memory,
                    rates=rates,
                )
                for index in range(group.instances)
            )
        number += group.count
    return tuple(shapes)


def best_rates(scenario: Scenario) -> Mapping[str, Sequence[ServiceRates]]:
    """By canonical name, how fast each model can be on each device where all that varies is at its best."""
    best = (1 - scenario.noise.rates) * (1 - scenario.noise.work)
    by_device = {shape.device: shape.rates for shape in instances_of(scenario)}
    return {
        canonical_name(model.name): [rates[model.name].scaled(best) for rates in by_device.values()]
        for model in scenario.models
    }


def instance_count(scenario: Scenario) -> int:
    """How many instances there are."""
    return sum(group.count * group.instances for group in scenario.devices)


def memory_bytes(device: ScenarioDevice) -> int:
    """Memory of one such GPU; marketed gigabytes are GiB. Raises: ValueError, where it is not known."""
    if device.memory_bytes is not None:
        return device.memory_bytes
    known = capability_of(device.gpu)
    if known is None:
        raise ValueError(f"'{device.gpu}' is not a known GPU")
    if len(known.memory_gb) > 1:
        sizes = " or ".join(f"{size}GiB" for size in known.memory_gb)
        raise ValueError(f"'{device.gpu}' is sold with {sizes}")
    return known.memory_gb[0] * _GIB


def nominal_decode(device: ScenarioDevice, model: ScenarioModel) -> float:
    """Tokens per second of one stream by bandwidth and size. Raises: ValueError, where the GPU is unknown."""
    known = capability_of(device.gpu, device.memory_bytes)
    if known is None:
        raise ValueError(f"'{device.gpu}' is not a known GPU")
    return _BANDWIDTH_SHARE * known.bandwidth_gb_per_second * 1e9 / model.size_bytes


def needed_bytes(scenario: Scenario, model: ScenarioModel) -> int:
    """What the model takes of a device as the simulated server reckons: weights, the KV cache of all slots, a
    buffer."""
    kind = Kind.EMBEDDING if model.embeds else Kind.CHAT
    weights = weights_of(ModelSpec(name=model.name, size_bytes=model.size_bytes, kind=kind))
    return predicted_bytes(
        weight_bytes=model.size_bytes,
        kv_bytes_per_token=weights.kv_bytes_per_token,
        num_ctx=scenario.instances.context_length,
        slots=slots_of(scenario, model),
    )


def slots_of(scenario: Scenario, model: ScenarioModel) -> int:
    """Parallel places of its runner. Source: Ollama v0.33 server/sched.go: models that embed have one."""
    return 1 if model.embeds else scenario.instances.slots


def _rates(scenario: Scenario, device: ScenarioDevice, model: ScenarioModel) -> ServiceRates:
    setup = scenario.instances
    decode, prefill = model.decode_tokens_per_second, model.prefill_tokens_per_second
    if decode is None:
        # Rates of prompts alone say all of a model that only embeds.
        decode = nominal_decode(device, model) if prefill is None or not model.embeds else prefill
    return ServiceRates(
        prefill_tokens_per_second=(prefill or decode * _PREFILL_PER_DECODE) * device.speed,
        decode_tokens_per_second=decode * device.speed,
        parallel_slowdown=setup.parallel_slowdown,
        load_bytes_per_second=setup.load_bytes_per_second,
        load_base_seconds=setup.load_base_seconds,
    )
