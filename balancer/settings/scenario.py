"""A scenario: the fleet, the models and the workload of a run in virtual time, each group a frozen model.

Sizes are bytes, durations are seconds of virtual time.
"""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from balancer.settings.groups import Group
from balancer.settings.values import Count, ModelName, Number, Size


class ScenarioDevice(Group):
    """Some GPUs of one make."""

    gpu: str = Field(default="RTX 4090", description="Name as the driver tells it, or as people write it.")
    memory_bytes: Size | None = Field(default=None, description="Memory of each; from its name without it.")
    count: Count = Field(default=1, ge=1, le=1024, description="How many there are.")
    instances: Count = Field(default=1, ge=1, le=16, description="Ollama processes on each.")


class ScenarioModel(Group):
    """One model that every instance has on its disk."""

    name: ModelName = Field(description="Its name.")
    size_bytes: Size = Field(description="Size of its weights.")
    embeds: bool = Field(default=False, description="Whether it embeds and cannot generate.")
    decode_tokens_per_second: Number | None = Field(
        default=None, description="Rate of one stream on every device; from bandwidth and size without it."
    )
    prefill_tokens_per_second: Number | None = Field(
        default=None, description="Rate of prompt evaluation on every device; likewise."
    )


class ScenarioInstances(Group):
    """How the instances are set up."""

    slots: Count = Field(default=4, ge=1, le=64, description="OLLAMA_NUM_PARALLEL of each.")
    slots_known: bool = Field(default=True, description="Whether the balancer is told of the slots.")
    context_length: Count = Field(default=8192, ge=256, description="OLLAMA_CONTEXT_LENGTH of each.")
    max_loaded_models: Count = Field(default=3, ge=0, description="OLLAMA_MAX_LOADED_MODELS of each.")
    keep_alive_seconds: Number = Field(default=300.0, gt=0, description="OLLAMA_KEEP_ALIVE of each.")
    prefix_cache_tokens: Count = Field(default=65_536, ge=0, description="What a runner's cache holds.")
    warm: bool = Field(
        default=True, description="Whether models are resident at the start as far as they fit."
    )


class ScenarioNoise(Group):
    """What no balancer can know: each is the half width of a uniform distribution around 1."""

    rates: Number = Field(default=0.3, ge=0, lt=1, description="Rates of each (instance, model), for a run.")
    work: Number = Field(default=0.1, ge=0, lt=1, description="Rates of each request.")
    loads: Number = Field(default=0.3, ge=0, lt=1, description="Time of each load.")


class PopulationKind(StrEnum):
    """What kind of clients."""

    CHAT = "chat"
    AGENT = "agent"
    EMBEDDING = "embedding"
    BATCH = "batch"


class ScenarioPopulation(Group):
    """Some clients of one kind."""

    kind: PopulationKind = Field(description="What they do.")
    share: Number = Field(default=1.0, gt=0, description="Their part of all requests, relative to others'.")
    priority: Literal["interactive", "normal", "batch"] = Field(default="normal", description="Their class.")


class ScenarioWorkload(Group):
    """What is asked for."""

    load: Number = Field(default=0.7, gt=0, le=100, description="Demand over what the fleet can serve warm.")
    populations: tuple[ScenarioPopulation, ...] = Field(description="Who asks.")


class ScenarioObjectives(Group):
    """When an answer is good: goodput counts no others."""

    ttft_seconds: Number = Field(default=2.0, gt=0, description="First byte within this time,")
    ttft_seconds_per_1000_tokens: Number = Field(default=1.0, ge=0, description="and this for its prompt.")
    token_seconds: Number = Field(default=0.1, gt=0, description="Mean time between tokens at most.")


class Scenario(Group):
    """One experiment."""

    name: str = Field(description="Short name.")
    requests: Count = Field(default=20_000, ge=1, description="Requests of a run.")
    queue_requests: Count = Field(default=1000, ge=1, description="`limits.queue_requests`.")
    queue_seconds: Number = Field(default=300.0, gt=0, description="`limits.queue_seconds`.")
    devices: tuple[ScenarioDevice, ...] = Field(description="The GPUs.")
    models: tuple[ScenarioModel, ...] = Field(description="The models.")
    instances: ScenarioInstances = Field(default_factory=ScenarioInstances)
    noise: ScenarioNoise = Field(default_factory=ScenarioNoise)
    workload: ScenarioWorkload
    objectives: ScenarioObjectives = Field(default_factory=ScenarioObjectives)
