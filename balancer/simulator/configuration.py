"""How one simulated server is set up: facts only, read by every part of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from balancer.simulator.models import DEFAULT_MODELS, ModelSpec
from balancer.simulator.service_model import ServiceRates

VERSION = "0.33.0-simulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """One simulated server. Every `*_seconds` is simulated time: wall time is `speed` times shorter.

    `memory_bytes` 0 means no GPU: size_vram is 0 and only the count of models
    limits. `context_length` 0 takes the tier of the memory. `load_seconds`
    replaces the load time that size and bandwidth give. `send_buffer_bytes`
    shrinks the socket path, so that a stopped reader is felt at once.
    """

    host: str = "127.0.0.1"
    port: int = 0
    name: str = "simulated"
    models: tuple[ModelSpec, ...] = DEFAULT_MODELS
    slots: int = 1
    max_loaded_models: int = 3
    max_queue: int = 512
    memory_bytes: int = 24 * (1 << 30)
    context_length: int = 4096
    seed: int = 0
    speed: float = 1.0
    rates: ServiceRates = field(default_factory=ServiceRates)
    load_seconds: float | None = None
    keep_alive_seconds: float = 300.0
    answer_tokens: int = 64
    prefix_cache_tokens: int = 262_144
    download_bytes_per_second: float = 1e9
    send_buffer_bytes: int | None = None
    remembered_requests: int = 100
    may_kill_process: bool = False
