"""Foreign names for the balancer's own settings: the keys of the INI section [GPU_LoadBalancing], the
`GPU_*` and `MODEL_POOL_*` environment variables, and Modelium's YAML. Each is a table from the foreign
name to an own path; where both names are given in one place, the own name wins.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from pydantic import Field

from balancer.settings.groups import Group
from balancer.settings.layers import Layer
from balancer.settings.schema import Settings
from balancer.settings.tree import Entry, Path
from balancer.settings.values import Address, Count, ModelName, Number, Paths

INI_SECTION = "GPU_LoadBalancing"
INI_KEYS: Mapping[str, Path] = MappingProxyType(
    {
        "EnableGpuLoadBalancing": ("load_balancing", "enabled"),
        "LoadBalancingStrategy": ("strategy",),
        "HealthCheckIntervalSeconds": ("health", "interval_seconds"),
        "HealthCheckTimeoutSeconds": ("health", "timeout_seconds"),
        "UnhealthyThreshold": ("health", "unhealthy_threshold"),
        "HealthyThreshold": ("health", "healthy_threshold"),
        "EnableBatchProcessing": ("batching", "enabled"),
        "MaxBatchSize": ("batching", "max_size"),
        "BatchWindowMs": ("batching", "window_ms"),
        "EnableKvCacheSharing": ("cache", "sharing"),
        "MaxCacheMemoryPercent": ("cache", "max_memory_percent"),
        "EnableCircuitBreaker": ("circuit_breaker", "enabled"),
        "CircuitBreakerThreshold": ("circuit_breaker", "threshold"),
        "CircuitBreakerResetSeconds": ("circuit_breaker", "reset_seconds"),
    }
)

VARIABLES: Mapping[str, Path] = MappingProxyType(
    {
        "GPU_ENABLE_MULTI_MODEL_INSTANCES": ("provisioning", "several_instances"),
        "GPU_MAX_MODEL_INSTANCES": ("provisioning", "max_instances_per_device"),
        "GPU_MODEL_MEMORY_BUFFER_GB": ("provisioning", "memory_reserve_bytes"),
        "GPU_ESTIMATED_MODEL_SIZE_GB": ("provisioning", "model_size_estimate_bytes"),
        "GPU_BATCH_SIZE": ("batching", "max_size"),
        "GPU_MAX_DELAY_MS": ("batching", "window_ms"),
        "GPU_QUEUE_SIZE": ("limits", "queue_requests"),
        "GPU_ENABLE_WARMUP": ("provisioning", "warm_up"),
        "GPU_USE_FP16": ("provisioning", "use_fp16"),
        "MODEL_POOL_ENABLED": ("model_pool", "enabled"),
        "MODEL_POOL_MAX_INSTANCES": ("model_pool", "max_instances"),
    }
)
# Their author's code divides by 1024³, so a GB of theirs is a GiB.
GIB_VARIABLES = frozenset(name for name in VARIABLES if name.endswith("_GB"))


class ModeliumDiscovery(Group):
    """Where models are dropped."""

    watch_directories: Paths = Field(default=(), description="The same as drop_dir.")


class ModeliumPolicies(Group):
    """Which models stay loaded."""

    evict_after_idle_seconds: Number = Field(
        default=300.0, ge=1, le=31_536_000, description="The same as placement.evict_after_idle_seconds."
    )
    always_loaded: tuple[ModelName, ...] = Field(default=(), description="The same as placement.pinned.")


class ModeliumOrchestration(Group):
    """Modelium's names for drop_dir and placement."""

    model_discovery: ModeliumDiscovery = Field(
        default_factory=ModeliumDiscovery, description="Where models are dropped."
    )
    policies: ModeliumPolicies = Field(
        default_factory=ModeliumPolicies, description="Which models stay loaded."
    )


class ModeliumMetrics(Group):
    """Modelium's name for metrics_listen."""

    enabled: bool = Field(default=True, description="false: no metrics_listen.")
    port: Count = Field(
        default=9090, ge=1, le=65535, description="The same as metrics_listen, on 127.0.0.1 at this port."
    )


class ModeliumVllm(Group):
    """Modelium's name for runtimes.vllm."""

    enabled: bool = Field(default=False, description="The same as runtimes.vllm.enabled.")


class FileSettings(Settings):
    """What a YAML file may hold: the settings, and Modelium's names for some of them."""

    vllm: ModeliumVllm = Field(default_factory=ModeliumVllm, description="Modelium's name for runtimes.vllm.")
    orchestration: ModeliumOrchestration = Field(
        default_factory=ModeliumOrchestration, description="Modelium's names for drop_dir and placement."
    )
    metrics: ModeliumMetrics = Field(
        default_factory=ModeliumMetrics, description="Modelium's name for metrics_listen."
    )


FOREIGN = frozenset(FileSettings.model_fields) - frozenset(Settings.model_fields)
_MODELIUM: Mapping[Path, Path] = MappingProxyType(
    {
        ("vllm", "enabled"): ("runtimes", "vllm", "enabled"),
        ("orchestration", "model_discovery", "watch_directories"): ("drop_dir",),
        ("orchestration", "policies", "evict_after_idle_seconds"): ("placement", "evict_after_idle_seconds"),
        ("orchestration", "policies", "always_loaded"): ("placement", "pinned"),
    }
)


def under_own_names(layer: Layer) -> Layer:
    """A layer of `FileSettings` under the balancer's own names."""
    broken = frozenset(_own_path(path) for path in layer.broken)
    return Layer(tuple(_own_entries(layer.entries)), layer.faults, broken)


def _own_entries(entries: Iterable[Entry]) -> list[Entry]:
    """Valid entries of a `FileSettings` under the balancer's own names, own ones last so that they win."""
    own = [entry for entry in entries if entry.path[0] not in FOREIGN]
    foreign = [entry for entry in entries if entry.path[0] in FOREIGN]
    renamed = [
        Entry(_MODELIUM[entry.path], entry.value, entry.source, entry.key, entry.indices)
        for entry in foreign
        if entry.path in _MODELIUM
    ]
    return [*renamed, *_metrics([entry for entry in foreign if entry.path[0] == "metrics"]), *own]


def _own_path(path: Path) -> Path:
    """The own path of a path of `FileSettings`."""
    return ("metrics_listen",) if path[0] == "metrics" else _MODELIUM.get(path, path)


def _metrics(entries: list[Entry]) -> list[Entry]:
    """The listener that Modelium's `metrics` group asks for: none when it is switched off."""
    if not entries:
        return []
    given = ModeliumMetrics.model_validate({entry.path[-1]: entry.value for entry in entries})
    last = entries[-1]
    listen = Address("127.0.0.1", given.port) if given.enabled else None
    return [Entry(("metrics_listen",), listen, last.source, last.key)]
