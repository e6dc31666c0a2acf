"""A scenario: the fleet, the models and the workload of a run in virtual time, each group a frozen model.

Sizes are bytes, durations are seconds of virtual time. Files are read by
`balancer.simulator.virtual.scenario_file`, which also knows the rules between several settings.
"""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from balancer.settings.groups import GIB, MIB, Group
from balancer.settings.values import Count, ModelName, Name, Number, Size


class ScenarioDevice(Group):
    """Some GPUs of one make."""

    gpu: str = Field(
        default="RTX 4090",
        max_length=100,
        description="Its name as the driver tells it, or as people write it.",
    )
    memory_bytes: Size | None = Field(
        default=None,
        ge=256 * MIB,
        le=1024 * GIB,
        description="Memory of each, in bytes or as 24GiB. null: what GPUs of this name are sold with.",
    )
    speed: Number = Field(
        default=1.0,
        gt=0,
        le=100,
        description="How fast it computes against what its name promises; 0.5 is half as fast.",
    )
    count: Count = Field(default=1, ge=1, le=1024, description="How many there are.")
    instances: Count = Field(
        default=1, ge=1, le=16, description="Ollama processes on each; all of them share its memory."
    )


class ScenarioModel(Group):
    """One model that every instance has on its disk."""

    name: ModelName = Field(description="Its name.")
    size_bytes: Size = Field(ge=MIB, le=1024 * GIB, description="Size of its weights, in bytes or as 4.9GB.")
    embeds: bool = Field(default=False, description="Whether it embeds and cannot generate.")
    decode_tokens_per_second: Number | None = Field(
        default=None,
        gt=0,
        le=1_000_000,
        description="Rate at which one stream is generated, on every device of speed 1. null: from bandwidth "
        "and size.",
    )
    prefill_tokens_per_second: Number | None = Field(
        default=None,
        gt=0,
        le=10_000_000,
        description="Rate of prompt evaluation, on every device of speed 1. null: a multiple of the rate of "
        "generation.",
    )


class ScenarioInstances(Group):
    """How the instances are set up."""

    slots: Count = Field(
        default=4,
        ge=1,
        le=64,
        description="OLLAMA_NUM_PARALLEL of each. Models that embed have one slot, as in Ollama.",
    )
    slots_known: bool = Field(default=True, description="Whether the balancer is told of the slots.")
    context_length: Count = Field(
        default=8192, ge=256, le=1_048_576, description="OLLAMA_CONTEXT_LENGTH of each, in tokens."
    )
    max_loaded_models: Count = Field(
        default=3, ge=0, le=1024, description="OLLAMA_MAX_LOADED_MODELS of each. 0: as many as fit."
    )
    keep_alive_seconds: Number = Field(
        default=300.0, gt=0, le=31_536_000, description="OLLAMA_KEEP_ALIVE of each, in seconds."
    )
    prefix_cache_tokens: Count = Field(
        default=65_536, ge=0, le=1_000_000_000, description="How many tokens of prompts a runner remembers."
    )
    warm: bool = Field(
        default=True, description="Whether models are resident at the start as far as they fit."
    )
    parallel_slowdown: Number = Field(
        default=0.15,
        ge=0,
        le=1,
        description="By which share of a token's time each further stream of a runner delays all of them.",
    )
    load_base_seconds: Number = Field(
        default=0.5,
        ge=0,
        le=3600,
        description="What every load takes besides reading the weights, in seconds.",
    )
    load_bytes_per_second: Size = Field(
        default=2_000_000_000,
        ge=MIB,
        le=1024 * GIB,
        description="How fast a load reads weights, in bytes or as 2GB.",
    )


class ScenarioNoise(Group):
    """What no balancer can know: each is the half width of a uniform distribution around 1."""

    rates: Number = Field(
        default=0.3, ge=0, le=0.99, description="Rates of each (instance, model), for a run."
    )
    work: Number = Field(default=0.1, ge=0, le=0.99, description="Rates of each request.")
    loads: Number = Field(default=0.3, ge=0, le=0.99, description="Time of each load.")


class PopulationKind(StrEnum):
    """What kind of clients."""

    CHAT = "chat"
    AGENT = "agent"
    EMBEDDING = "embedding"
    BATCH = "batch"


class ScenarioPopulation(Group):
    """Some clients of one kind. What stands null is that of the kind; docs/scenarios.md tells it."""

    kind: PopulationKind = Field(description="What they do.")
    share: Number = Field(
        default=1.0, ge=0.001, le=1000, description="Their part of all requests, relative to others'."
    )
    priority: Literal["interactive", "normal", "batch"] = Field(default="normal", description="Their class.")
    models: tuple[ModelName, ...] = Field(
        default=(), description="What they ask for. Empty: every model that can do it."
    )
    clients: Count = Field(default=20, ge=1, le=100_000, description="How many clients.")
    client_skew: Number = Field(
        default=1.2,
        ge=0.5,
        le=100,
        description="Exponent of the Pareto distribution of the clients' rates; the smaller, the more do a "
        "few of them ask for.",
    )
    arrival_cv: Number = Field(
        default=2.0,
        ge=0.05,
        le=10,
        description="Coefficient of variation of the times between sessions of one client; 1 is Poisson, "
        "more comes in bursts.",
    )
    apps: Count = Field(
        default=15,
        ge=1,
        le=10_000,
        description="How many beginnings of prompts (system prompts, tools, templates) they share.",
    )
    shared_tokens: Count | None = Field(
        default=None, ge=1, le=1_048_576, description="Median length of such a beginning, in tokens."
    )
    turns: Number | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Mean number of turns of a session, unless the context ends it first.",
    )
    think_seconds: Number | None = Field(
        default=None, gt=0, le=86_400, description="Median time from an answer to the next turn, in seconds."
    )
    input_tokens: Count | None = Field(
        default=None, ge=1, le=1_048_576, description="Median of what a turn adds to the prompt, in tokens."
    )
    output_tokens: Count | None = Field(
        default=None, ge=1, le=1_048_576, description="Mean length of an answer, in tokens."
    )
    inputs: Count = Field(
        default=256, ge=1, le=10_000, description="The most texts of one request that embeds."
    )
    job_requests: Number = Field(
        default=20.0, ge=1, le=10_000, description="Mean number of requests that a batch sends at once."
    )
    cancel_share: Number = Field(
        default=0.05, ge=0, le=1, description="The share of requests whose client does not wait for ever."
    )
    patience_seconds: Number = Field(
        default=10.0, gt=0, le=86_400, description="Mean time after which such a client leaves, in seconds."
    )


class ScenarioWorkload(Group):
    """What is asked for."""

    load: Number = Field(
        default=0.7,
        ge=0.001,
        le=100,
        description="Mean demand over what the fleet could do with every model resident and every slot busy; "
        "above 1 it is overloaded.",
    )
    sessions_per_second: Number | None = Field(
        default=None,
        ge=0.0001,
        le=100_000,
        description="Sessions that begin in a second, in place of load.",
    )
    zipf_exponent: Number = Field(
        default=1.0,
        ge=0,
        le=5,
        description="How unequally models are asked for: the one of rank r in proportion to r^-exponent. At "
        "the start they rank as models lists them.",
    )
    drift_seconds: Number | None = Field(
        default=600.0,
        ge=1,
        le=31_536_000,
        description="After how long two ranks are swapped, again and again (10,000 times at most), in "
        "seconds. null: never.",
    )
    diurnal_amplitude: Number = Field(
        default=0.0, ge=0, le=0.99, description="How far the rate of arrivals swings around its mean."
    )
    diurnal_seconds: Number = Field(
        default=86_400.0, gt=0, le=31_536_000, description="How long one such swing takes, in seconds."
    )
    foreign_share: Number = Field(
        default=0.0,
        ge=0,
        le=0.9,
        description="The share of all requests that go to instances past the balancer; they add to the load.",
    )
    foreign_instances: tuple[Count, ...] = Field(
        default=(), description="The indices of the instances that they go to. Empty: to each alike."
    )
    populations: tuple[ScenarioPopulation, ...] = Field(description="Who asks.")


class ScenarioFaultKind(StrEnum):
    """What goes wrong."""

    KILL = "kill"
    HANG = "hang"
    SLOW = "slow"
    LOADS_FAIL = "loads_fail"


class ScenarioFault(Group):
    """One fault of one instance."""

    kind: ScenarioFaultKind = Field(
        description="kill: the process ends and is back after the time; hang: it answers nothing; slow: it "
        "is slower by factor; loads_fail: loads fail for want of memory."
    )
    at_seconds: Number = Field(ge=0, le=31_536_000, description="When it begins, in seconds.")
    seconds: Number = Field(gt=0, le=31_536_000, description="How long it lasts, in seconds.")
    instance: Count | None = Field(
        default=None, ge=0, le=1023, description="The index of the instance. null: drawn by the seed."
    )
    factor: Number = Field(
        default=3.0, gt=1, le=1000, description="How many times slower a slow instance is."
    )


class ScenarioObjectives(Group):
    """When an answer is good: goodput counts no others."""

    ttft_seconds: Number = Field(
        default=2.0,
        gt=0,
        le=86_400,
        description="The first byte comes within this time, in seconds, and the next setting's besides.",
    )
    ttft_seconds_per_1000_tokens: Number = Field(
        default=1.0, ge=0, le=3600, description="What each 1000 tokens of the prompt add to it, in seconds."
    )
    token_seconds: Number = Field(
        default=0.1, gt=0, le=3600, description="Mean time between tokens at most, in seconds."
    )


class Scenario(Group):
    """One experiment."""

    name: Name = Field(description="A short name.")
    requests: Count = Field(
        default=20_000,
        ge=1,
        le=100_000_000,
        description="Requests of a run, foreign ones not counted.",
    )
    queue_requests: Count = Field(
        default=1000, ge=1, le=1_000_000, description="limits.queue_requests of the balancer."
    )
    queue_seconds: Number = Field(
        default=300.0, gt=0, le=86_400, description="limits.queue_seconds of the balancer."
    )
    devices: tuple[ScenarioDevice, ...] = Field(description="The GPUs. Instances are numbered through them.")
    models: tuple[ScenarioModel, ...] = Field(description="The models, the most popular first.")
    instances: ScenarioInstances = Field(
        default_factory=ScenarioInstances, description="How the instances are set up."
    )
    noise: ScenarioNoise = Field(
        default_factory=ScenarioNoise,
        description="What no balancer can know: half widths of uniform distributions around 1.",
    )
    workload: ScenarioWorkload = Field(description="What is asked for.")
    faults: tuple[ScenarioFault, ...] = Field(default=(), description="What goes wrong.")
    objectives: ScenarioObjectives = Field(
        default_factory=ScenarioObjectives, description="When an answer is good: goodput counts no others."
    )
