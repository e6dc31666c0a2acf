"""A plan: which instances this machine gets, each with its share of memory and the reason for it."""

from enum import StrEnum

import msgspec

from balancer.core.device import Device


class Runtime(StrEnum):
    """A program that serves models."""

    OLLAMA = "ollama"
    VLLM = "vllm"
    LLAMA_SERVER = "llama-server"


class PlannedInstance(msgspec.Struct, frozen=True, kw_only=True):
    """One instance to start. `devices` are their keys, none for the CPU. `memory_bytes` is its share: of its
    devices' memory, or of the host's on the CPU. `prompt_cache_bytes` is host memory that all prompt
    caches of its runners may take. `context_length` is None where the runtime decides. `prunes` marks the one
    that may tidy up a store that several read. `model_path` is the folder or file that a runtime of one
    model serves, under the names in `models`, and `projector_path` the file with which it sees images or
    hears; for Ollama `models` are those meant for it."""

    name: str
    port: int
    runtime: Runtime
    devices: tuple[str, ...]
    memory_bytes: int
    reason: str
    slots: int | None = None
    context_length: int | None = None
    prompt_cache_bytes: int = 0
    prunes: bool = False
    models: tuple[str, ...] = ()
    model_path: str = ""
    projector_path: str = ""
    max_concurrent_requests: int | None = None
    weight: float = 1.0


class PlannedDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device and the instances on it; the CPU is a device without a GPU."""

    name: str
    memory_bytes: int
    instances: tuple[PlannedInstance, ...]
    gpu: Device | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be started. `spanning` instances use several devices; `notes` say what was left out, why."""

    devices: tuple[PlannedDevice, ...] = ()
    spanning: tuple[PlannedInstance, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def instances(self) -> tuple[PlannedInstance, ...]:
        """All of them, in the order in which they are to be started: first those of one model, which take
        their memory at the start, in the order of their ports, which they got in that order."""
        every = (*(each for device in self.devices for each in device.instances), *self.spanning)
        alone = sorted((each for each in every if each.runtime is not Runtime.OLLAMA), key=_port)
        return (*alone, *(each for each in every if each.runtime is Runtime.OLLAMA))


def _port(each: PlannedInstance) -> int:
    return each.port
