"""Runners that lie on the CPU in part or whole, though their instance is not known to be on it.

Ollama splits a model that does not fit, or falls back to the CPU, without a word but this one: `size_vram`
below `size` in `/api/ps`. Where it could not tell, both are the size of the model's file. Source:
Ollama v0.33 llm/server.go.
"""

from dataclasses import dataclass

from balancer.core.names import ModelName, is_cloud_name
from balancer.fleet.instance import Instance
from balancer.fleet.residency import Row

_CPU_SLOWDOWN = 15
"""Decoding reads every weight for each token; host memory is about so many times slower than a device's."""
_LARGEST = 2**63


@dataclass(frozen=True, slots=True)
class Offload:
    """A runner not wholly on its device, of `size_bytes` with `device_bytes` there."""

    model: ModelName
    size_bytes: int
    device_bytes: int

    @property
    def cpu_share(self) -> float:
        """How much of it is on the CPU, above 0 and at most 1."""
        return 1 - self.device_bytes / self.size_bytes

    @property
    def health(self) -> float:
        """Its expected speed against that of one wholly on the device."""
        return 1 / (1 + (_CPU_SLOWDOWN - 1) * self.cpu_share)


def offloads(instance: Instance) -> tuple[Offload, ...]:
    """Its runners that are not wholly on a device; none where it is known to be on the CPU."""
    if instance.spec.devices == () or instance.inventory is None:
        return ()
    found = (offload_of(runner.model, runner.row) for runner in instance.inventory.runners.values())
    return tuple(each for each in found if each is not None)


def is_on_device(instance: Instance) -> bool:
    """Whether one of its runners lies on a device, in part at least."""
    runners = instance.inventory.runners.values() if instance.inventory is not None else ()
    sizes = (runner.row.get("size_vram") for runner in runners)
    return any(type(each) is int and each > 0 for each in sizes)


def offload_of(model: ModelName, row: Row) -> Offload | None:
    """That of one runner, None where it is wholly on its device or does not say."""
    size, on_device = row.get("size"), row.get("size_vram")
    if type(size) is not int or type(on_device) is not int or is_cloud_name(model):
        return None
    return Offload(model, size, on_device) if 0 <= on_device < size < _LARGEST else None
