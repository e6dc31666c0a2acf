"""The groups of the configuration, each a frozen model: a setting's meaning, unit, default and bounds
stand with its field, and its description is the manual's line for it. The configuration as a whole is
in `schema`. Sizes are bytes, durations are seconds unless the name says otherwise.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from balancer.settings.values import Count, LogFormat, LogLevel, ModelName, Number, Size, lower

KIB, MIB, GIB = 2**10, 2**20, 2**30


class Group(BaseModel):
    """A frozen set of settings that refuses keys it does not know."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
    )


class LoadBalancingSettings(Group):
    """Whether requests are spread at all."""

    enabled: bool = Field(
        default=True, description="false: the first instance serves everything and nothing is chosen."
    )


class HealthSettings(Group):
    """How a silent or failing instance is found."""

    interval_seconds: Number = Field(
        default=30.0, ge=0.05, le=3600, description="Time between two probes of an instance, in seconds."
    )
    timeout_seconds: Number = Field(
        default=5.0, ge=0.05, le=300, description="Time after which a probe counts as failed, in seconds."
    )
    unhealthy_threshold: Count = Field(
        default=3, ge=1, le=100, description="Failed probes in a row after which an instance is down."
    )
    healthy_threshold: Count = Field(
        default=2, ge=1, le=100, description="Good probes in a row after which an instance is up again."
    )
    unload_stalled: bool = Field(
        default=False,
        description="Whether a model that takes requests and gives nothing is unloaded at instances that the "
        "balancer did not start, too. Without it such a model is left alone there for a while.",
    )
    eject_below: Number = Field(
        default=0.2,
        ge=0,
        le=0.9,
        description="The health, from 0 to 1, below which an instance is left alone for a while. 0: none is.",
    )
    eject_after_seconds: Number = Field(
        default=10.0,
        ge=0,
        le=3600,
        description="How long its health must have been below, in seconds.",
    )
    restore_above: Number = Field(
        default=0.4,
        ge=0,
        le=1,
        description="The health above which it is used again once its time is over.",
    )
    slow_start_seconds: Number = Field(
        default=15.0,
        ge=0,
        le=3600,
        description="How long an instance that is back among others takes until it uses all of its slots, in "
        "seconds. 0: at once.",
    )


class CircuitBreakerSettings(Group):
    """When an instance that fails requests is left alone for a while."""

    enabled: bool = Field(default=True, description="Whether failures in a row open a breaker.")
    threshold: Count = Field(default=5, ge=1, le=1000, description="Failures in a row that open it.")
    reset_seconds: Number = Field(
        default=60.0,
        ge=0.05,
        le=86_400,
        description="Time until an open breaker lets requests try, in seconds.",
    )
    permits: Count = Field(
        default=2, ge=1, le=1000, description="Requests at once that may try a half-open breaker."
    )


class HedgingSettings(Group):
    """Asking a second instance where the first is slow to begin its answer."""

    enabled: bool = Field(
        default=False,
        description="Whether embeddings, and short answers that are the same each time, are asked of a "
        "second instance where the first is unusually slow to begin.",
    )
    max_share: Number = Field(
        default=0.02,
        ge=0,
        le=0.2,
        description="The most requests of all that are asked of a second instance, as a share. What is not "
        "used is kept for later, up to 10 requests.",
    )
    min_delay_seconds: Number = Field(
        default=0.05,
        ge=0,
        le=60,
        description="The least time that the first instance is given, in seconds; from what was measured it "
        "may get more.",
    )


class BatchingSettings(Group):
    """Grouping of like requests."""

    enabled: bool = Field(default=True, description="Whether like requests are grouped.")
    max_size: Count = Field(default=4, ge=1, le=1024, description="The most requests in one group.")
    window_ms: Number = Field(
        default=100.0, ge=0, le=60_000, description="How long a group may wait for more, in milliseconds."
    )


class CacheSettings(Group):
    """Use of what runners remember of earlier prompts."""

    sharing: bool = Field(
        default=True, description="Whether requests go where the beginning of their prompt is still cached."
    )
    index_bytes: Size = Field(
        default=64 * MIB,
        ge=MIB,
        le=64 * GIB,
        description="Memory for what is remembered of prompts and where they went, about, in bytes or as "
        "64MiB.",
    )
    max_memory_percent: Number = Field(
        default=30.0,
        ge=0,
        le=100,
        description="The share of host memory for all prompt caches of managed runners together, in percent.",
    )


class DeviceSettings(Group):
    """One GPU of this machine that is to be treated in its own way."""

    gpu_id: Count = Field(ge=0, le=1023, description="The index of the GPU that is meant.")
    instances: Count = Field(
        ge=0, le=64, description="The instances that it gets, whatever its memory. 0: it is left alone."
    )


class ProvisioningSettings(Group):
    """How many instances a device gets, and what each is set up for."""

    several_instances: bool = Field(
        default=True, description="Whether a device may get more than one instance."
    )
    instances_per_device: Count | None = Field(
        default=None,
        ge=1,
        le=64,
        description="The instances on each device. null: from its memory, or from model_size_estimate_bytes.",
    )
    max_instances_per_device: Count | None = Field(
        default=None, ge=1, le=64, description="The most instances on one device. null: from its memory."
    )
    devices: tuple[DeviceSettings, ...] = Field(
        default=(), description="GPUs that get another number of instances than the others."
    )
    attach_existing: bool = Field(
        default=True,
        description="Whether Ollamas that run on this machine already are served in place of instances of "
        "the balancer's own, where no instances are named. false: they are left alone, and its own are "
        "started beside them.",
    )
    cpu_instance: bool = Field(
        default=False,
        description="Whether a machine with GPUs gets an instance on its CPU too, for small models. One "
        "without GPUs always does.",
    )
    memory_reserve_bytes: Size = Field(
        default=2 * GIB,
        ge=0,
        le=1024 * GIB,
        description="Memory of each device kept free for batches and activations, at most half of it, in "
        "bytes or as 2GiB.",
    )
    model_size_estimate_bytes: Size | None = Field(
        default=None,
        ge=MIB,
        le=1024 * GIB,
        description="The size assumed of a model that is not known yet, in bytes or as 1.5GiB; a device then "
        "gets as many instances as models of this size fit. null: its memory decides.",
    )
    model: ModelName | None = Field(
        default=None,
        description="The model that context lengths are chosen for. null: the largest of those meant for the "
        "instance, else an assumed one.",
    )
    slots: Count = Field(
        default=1,
        ge=1,
        le=64,
        description="Parallel places in each runner of a managed instance (OLLAMA_NUM_PARALLEL); each takes "
        "a KV cache of its own.",
    )
    first_port: Count = Field(
        default=11500,
        ge=1024,
        le=65535,
        description="The first port of managed instances; from there up, those that are free.",
    )
    warm_up: bool = Field(
        default=True, description="Whether models meant for an instance are loaded at its start."
    )
    use_fp16: bool = Field(
        default=True, description="Whether runtimes that offer a choice use 16-bit floats."
    )
    adopt_grace_seconds: Number = Field(
        default=15.0,
        ge=0,
        le=3600,
        description="How long managed instances outlive a balancer that was killed, for the next one to take "
        "them over warm, in seconds. 0: they end with it.",
    )


class ModelPoolSettings(Group):
    """Copies of one model."""

    enabled: bool = Field(default=True, description="Whether a model may have more than one copy.")
    max_instances: Count | None = Field(
        default=None, ge=1, le=1024, description="The most copies of one model. null: as demand asks."
    )


class PlacementSettings(Group):
    """Which models stay loaded."""

    evict_after_idle_seconds: Number = Field(
        default=300.0,
        ge=1,
        le=31_536_000,
        description="Idle time after which a model may be unloaded, in seconds.",
    )
    pinned: tuple[ModelName, ...] = Field(default=(), description="Models that are never unloaded.")


class LimitsSettings(Group):
    """What a client may send, and how long things may take."""

    body_bytes: Size = Field(
        default=64 * MIB,
        ge=KIB,
        le=16 * GIB,
        description="The largest request body, in bytes; beyond it 413. Blob uploads stream and are exempt.",
    )
    body_memory_bytes: Size | None = Field(
        default=None,
        ge=KIB,
        le=1024 * GIB,
        description="Memory for all request bodies held at once, in bytes; beyond it 503. null: a quarter of "
        "the memory that the balancer may use, 1 GiB at most, but no less than body_bytes.",
    )
    queue_requests: Count = Field(
        default=1000, ge=0, le=1_000_000, description="The most requests waiting for a slot; beyond it 503."
    )
    queue_seconds: Number = Field(
        default=300.0,
        gt=0,
        le=86_400,
        description="The longest that a request waits for a slot, in seconds; then 504. One that is sure to "
        "wait longer is told so at once: 503.",
    )
    interactive_delay_seconds: Number | None = Field(
        default=1.0,
        gt=0,
        le=86_400,
        description="The longest that what stands before a request of class interactive may take, in "
        "seconds. Where it takes longer for four times as long, the newest of the class are turned away, and "
        "new ones of worse classes: 503. null: they wait.",
    )
    normal_delay_seconds: Number | None = Field(
        default=None, gt=0, le=86_400, description="The same for class normal, in seconds."
    )
    batch_delay_seconds: Number | None = Field(
        default=None, gt=0, le=86_400, description="The same for class batch, in seconds."
    )
    queue_comment_seconds: Number | None = Field(
        default=None,
        ge=1,
        le=3600,
        description="How often a client that waits for its stream to begin gets a comment, in seconds; by "
        "/v1/chat/completions, /v1/completions and /v1/responses alone. null: never.",
    )
    request_line_bytes: Size = Field(
        default=8190, ge=256, le=MIB, description="The longest request line, in bytes; beyond it 414."
    )
    header_bytes: Size = Field(
        default=8190, ge=256, le=MIB, description="The longest single header, in bytes; beyond it 431."
    )
    headers_bytes: Size = Field(
        default=64 * KIB,
        ge=KIB,
        le=16 * MIB,
        description="All headers of a request together, in bytes; beyond it 431.",
    )
    header_count: Count = Field(
        default=100, ge=8, le=10_000, description="The most headers of a request; beyond it 431."
    )
    connections: Count | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="The most client connections at once. null: 45 % of the open files allowed.",
    )
    header_seconds: Number = Field(
        default=10.0, gt=0, le=3600, description="Time for a request's headers to arrive, in seconds."
    )
    body_idle_seconds: Number = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="The longest pause inside a request body, in seconds; then 408.",
    )
    idle_seconds: Number = Field(
        default=75.0, gt=0, le=86_400, description="How long an idle client connection is kept, in seconds."
    )
    connect_seconds: Number = Field(
        default=5.0, gt=0, le=300, description="Time to connect to an instance, in seconds."
    )
    stream_idle_seconds: Number = Field(
        default=60.0,
        gt=0,
        le=86_400,
        description="The longest pause inside an answer that has begun, in seconds; then it is cut.",
    )
    stop_seconds: Number = Field(
        default=8.0,
        ge=0,
        le=86_400,
        description="Time for answers under way to end when the balancer is stopped, in seconds.",
    )
    stream_buffer_bytes: Size = Field(
        default=4 * MIB,
        ge=MIB,
        le=GIB,
        description="What is kept of a stream for a slow reader, in bytes; whoever reads none is cut off.",
    )
    stream_memory_bytes: Size | None = Field(
        default=None,
        ge=MIB,
        le=1024 * GIB,
        description="Memory for what slow readers have left of all streams, in bytes; beyond it the one that "
        "is furthest behind is cut off. null: an eighth of the memory that the balancer may use, 512 MiB at "
        "most.",
    )

    @property
    def standing_delays(self) -> Mapping[str, float]:
        """The delays of the classes that are held to one, in seconds."""
        delays = {
            "interactive": self.interactive_delay_seconds,
            "normal": self.normal_delay_seconds,
            "batch": self.batch_delay_seconds,
        }
        return {name: seconds for name, seconds in delays.items() if seconds is not None}


class LogSettings(Group):
    """What is logged, and how."""

    level: Annotated[LogLevel, BeforeValidator(lower)] = Field(
        default=LogLevel.INFO, description="The least severe events that are logged."
    )
    format: Annotated[LogFormat, BeforeValidator(lower)] = Field(
        default=LogFormat.AUTO, description="auto: console on a terminal, else json (one object a line)."
    )
