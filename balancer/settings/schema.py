"""The whole configuration as one frozen model, `Settings`: where the balancer listens, which instances
it has, and the groups of `groups`. Where values come from is the business of `sources`, rules between
several settings that of `rules`; the rest of the house receives one `Settings` and never looks at
files or the environment.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, model_validator

from balancer.settings.groups import (
    GIB,
    MIB,
    BatchingSettings,
    CacheSettings,
    CircuitBreakerSettings,
    Group,
    HealthSettings,
    HedgingSettings,
    LimitsSettings,
    LoadBalancingSettings,
    LogSettings,
    ModelPoolSettings,
    PlacementSettings,
    ProvisioningSettings,
)
from balancer.settings.runtimes import RuntimesSettings
from balancer.settings.values import (
    Address,
    Count,
    InstanceUrl,
    ListenAddress,
    ModelName,
    Name,
    Number,
    Origin,
    Path,
    Paths,
    Provision,
    RuntimeName,
    Size,
    Strategy,
    StrategyName,
    lower,
)

# Accepted, so that a configuration written for them loads today, and without effect until the
# feature named is there; a group stands for all of its keys. The one list of its kind: a key leaves it with
# the change that gives it effect.
PENDING: Mapping[str, str] = MappingProxyType(
    {
        "batching": "dynamic batching",
        "drop_dir": "the drop folder",
        "model_pool": "replicas of models",
        "placement.pinned": "model placement",
    }
)


class InstanceSettings(Group):
    """One running server to attach, of Ollama or of another runtime; a plain text is taken for its URL."""

    url: InstanceUrl = Field(
        description="Where it answers: http or https, host and port, nothing after. Kept as scheme://host:port."
    )
    name: Name = Field(
        default_factory=lambda known: urlsplit(str(known.get("url", ""))).netloc,
        description="Its label in logs, metrics, headers and commands. Default: the host:port of its URL.",
    )
    weight: Number = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="Its share of the work relative to the others (dimensionless).",
    )
    max_concurrent_requests: Count | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="The most requests it may run at once over all of its runners. null: no cap of its own.",
    )
    slots: Count | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Parallel places in each of its runners (OLLAMA_NUM_PARALLEL; --max-num-seqs of vLLM). "
        "null: learned, else 1; 64 for vLLM.",
    )
    models: tuple[ModelName, ...] = Field(
        default=(),
        description="The models meant for it: placed there first; others only if nothing else can take them.",
    )
    store: Name | None = Field(
        default=None,
        description="A label for its model store: equal labels mean one store. null: a store of its own.",
    )
    runtime: Annotated[RuntimeName, BeforeValidator(lower)] = Field(
        default=RuntimeName.OLLAMA,
        description="What answers there. vllm and llama-server serve the models that they were started with; "
        "Ollama's requests are translated for them.",
    )
    device: Name | None = Field(
        default=None,
        description="Where it runs: an index, a UUID or cpu; equal ones share its memory. null: unknown.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return {"url": value} if isinstance(value, str) else value

    @property
    def host(self) -> str:
        """The host of its URL, an IPv6 address without its brackets."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The port of its URL."""
        return urlsplit(self.url).port or 0

    @property
    def tls(self) -> bool:
        """Whether it is spoken to over TLS."""
        return self.url.startswith("https:")


class GpuInstanceSettings(Group):
    """One instance on one GPU of this machine, at http://127.0.0.1:PORT."""

    gpu_id: Count = Field(ge=0, le=1023, description="The index of the GPU that it runs on.")
    port: Count = Field(ge=1, le=65535, description="The port that it listens on, at 127.0.0.1.")
    name: Name = Field(
        default_factory=lambda known: f"gpu{known.get('gpu_id')}:{known.get('port')}",
        description="Its label. Default: gpu<gpu_id>:<port>.",
    )
    memory_limit: Size | None = Field(
        default=None,
        ge=64 * MIB,
        le=4096 * GIB,
        description=(
            "Its share of the GPU's memory: bytes, or a size such as 7GB (GB is 10^9 bytes) or 7GiB "
            "(GiB is 2^30 bytes). null: no limit."
        ),
    )
    models: tuple[ModelName, ...] = Field(
        default=(),
        description="The models meant for it: placed there first; others only if nothing else can take them.",
    )
    max_concurrent_requests: Count | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="The most requests it may run at once over all of its runners. null: no cap of its own.",
    )

    def as_instance(self) -> InstanceSettings:
        """The same as an instance to attach."""
        return InstanceSettings(
            url=f"http://127.0.0.1:{self.port}",
            name=self.name,
            models=self.models,
            max_concurrent_requests=self.max_concurrent_requests,
            device=str(self.gpu_id),
        )


class Settings(Group):
    """The whole configuration, validated."""

    listen: ListenAddress = Field(
        default=Address("127.0.0.1", 11400),
        description="Where clients connect. Beyond loopback it needs allow_anonymous. Port 0: any free port.",
    )
    admin_listen: ListenAddress = Field(
        default=Address("127.0.0.1", 11401),
        description="Where dashboard, metrics and admin API answer. Loopback only. Port 0: any free port.",
    )
    metrics_listen: ListenAddress | None = Field(
        default=None,
        description="A further listener with metrics and health only, for a scraper elsewhere. null: none.",
    )
    strategy: StrategyName = Field(
        default=Strategy.ADAPTIVE,
        description="How an instance is chosen among those that can serve.",
    )
    instances: tuple[InstanceSettings, ...] = Field(
        default=(), description="Running instances to attach. They add to those of gpu_instances."
    )
    gpu_instances: tuple[GpuInstanceSettings, ...] = Field(
        default=(), description="Instances by GPU of this machine. They add to those of instances."
    )
    provision: Annotated[Provision, BeforeValidator(lower)] = Field(
        default=Provision.AUTO,
        description="Whether instances are started: for the devices found where none is named in instances, "
        "and for gpu_instances at whose port nobody answers.",
    )
    allow_anonymous: bool = Field(
        default=False, description="Whether listen may be reachable from other machines without keys."
    )
    allow_model_changes: bool = Field(
        default=False,
        description=(
            "Whether any client may pull, push, create, copy and delete models and upload blobs. "
            "Without it only clients on this machine may, unless another proxy passed them on."
        ),
    )
    fast_path: bool = Field(
        default=True,
        description="Whether answers to POSTs are written straight to the client's connection. Off: the same "
        "answers by a longer way.",
    )
    cors_origins: tuple[Origin, ...] = Field(
        default=(), description="Web origins that may call from a browser, each as scheme://host[:port]."
    )
    drop_dir: Paths = Field(
        default=(), description="Folders whose models are imported and served; one path or a list."
    )
    state_dir: Path | None = Field(
        default=None,
        description="Where a balancer that was killed leaves word of its instances for the next; nothing in "
        "it is needed to serve. null: ollama-balancer in $XDG_STATE_HOME, else in ~/.local/state.",
    )
    load_balancing: LoadBalancingSettings = Field(
        default_factory=LoadBalancingSettings, description="Whether requests are spread at all."
    )
    health: HealthSettings = Field(
        default_factory=HealthSettings, description="How a silent or failing instance is found."
    )
    circuit_breaker: CircuitBreakerSettings = Field(
        default_factory=CircuitBreakerSettings,
        description="When an instance that fails requests is left alone for a while.",
    )
    hedging: HedgingSettings = Field(
        default_factory=HedgingSettings,
        description="Asking a second instance where the first is slow to begin its answer.",
    )
    limits: LimitsSettings = Field(
        default_factory=LimitsSettings, description="What a client may send, and how long things may take."
    )
    log: LogSettings = Field(default_factory=LogSettings, description="What is logged, and how.")
    batching: BatchingSettings = Field(
        default_factory=BatchingSettings, description="Grouping of like requests."
    )
    cache: CacheSettings = Field(
        default_factory=CacheSettings, description="Use of what runners remember of earlier prompts."
    )
    provisioning: ProvisioningSettings = Field(
        default_factory=ProvisioningSettings,
        description="How many instances a device gets, and what each is set up for.",
    )
    model_pool: ModelPoolSettings = Field(
        default_factory=ModelPoolSettings, description="Copies of one model."
    )
    placement: PlacementSettings = Field(
        default_factory=PlacementSettings, description="Which models stay loaded."
    )
    runtimes: RuntimesSettings = Field(
        default_factory=RuntimesSettings, description="The programs of managed instances."
    )

    @property
    def all_instances(self) -> tuple[InstanceSettings, ...]:
        """Every instance to attach: those of `instances`, then those of `gpu_instances`."""
        return self.instances + tuple(each.as_instance() for each in self.gpu_instances)
