"""What was configured for an instance, and who may drain it."""

from dataclasses import dataclass
from enum import StrEnum

from balancer.core.names import ModelName
from balancer.core.plan import Runtime
from balancer.core.ticket import InstanceId


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSpec:
    """What was configured for an instance. `max_concurrent_requests` caps all its runners together;
    `slots` is per runner, None where it is to be learned; `models` are those meant for it, none
    meaning all; instances with the same `store` share one model directory. `devices` are the keys or
    indices of its devices, none for the CPU; None where nothing is known of them. A `managed` one was
    started by the balancer. A spare one takes models of at most `spare_bytes`, and those only while no
    other is free. `runtime` is what it is: all but Ollama have their models in memory for as long as they
    run."""

    id: InstanceId
    url: str
    weight: float = 1.0
    max_concurrent_requests: int | None = None
    slots: int | None = None
    models: frozenset[ModelName] = frozenset()
    store: str | None = None
    managed: bool = False
    spare_bytes: int | None = None
    devices: tuple[str, ...] | None = None
    runtime: Runtime = Runtime.OLLAMA

    @property
    def own_store(self) -> str:
        """The label of a store that belongs to it alone, as far as anyone knows."""
        return f"own:{self.id}"


class DrainedBy(StrEnum):
    """Who has drained an instance; each ends its own drain and nobody else's."""

    OPERATOR = "operator"
    LOST_DEVICE = "lost_device"
    RESTART = "restart"
