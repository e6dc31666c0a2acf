"""Models with a runtime of their own, vLLM or llama-server: where each goes before Ollama gets the rest."""

from collections.abc import Mapping, Sequence

import msgspec

from balancer.core.device import Device
from balancer.core.plan import Runtime
from balancer.provisioning.tiers import gib
from balancer.settings import Fault

MACHINE = "this machine"


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model with an instance of its own, and the memory that it needs of its devices together. Without
    `gpu_ids` it goes to the GPU with the most room; with several it is split in equal parts."""

    name: str
    runtime: Runtime
    path: str
    memory_bytes: int
    gpu_ids: tuple[int, ...] = ()
    port: int = 0
    slots: int | None = None
    context_length: int | None = None


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """A model and what it takes of each GPU, by index; of none it is on the CPU."""

    model: ServedModel
    parts: Mapping[int, int]


def place(
    models: Sequence[ServedModel], gpus: Sequence[Device], *, host_bytes: int
) -> tuple[list[Placed], list[Fault]]:
    """A place for each that fits, a fault for each other. Small ones first: where not all fit, most do."""
    room = {gpu.index: min(gpu.memory_bytes, gpu.free_bytes) for gpu in gpus}
    placed: list[Placed] = []
    faults: list[Fault] = []
    for model in sorted(models, key=lambda each: (each.memory_bytes, each.name)):
        chosen = model.gpu_ids or tuple(sorted(room, key=lambda index: (-room[index], index))[:1])
        problem = _problem(model, chosen, room, host_bytes)
        if problem is not None:
            faults.append(Fault(MACHINE, f"runtimes: {model.name}", *problem))
            continue
        parts = {index: -(-model.memory_bytes // len(chosen)) for index in chosen}
        for index, part in parts.items():
            room[index] -= part
        host_bytes -= 0 if parts else model.memory_bytes
        placed.append(Placed(model=model, parts=parts))
    return placed, faults


def _problem(
    model: ServedModel, chosen: Sequence[int], room: Mapping[int, int], host_bytes: int
) -> tuple[str, str] | None:
    missing = [index for index in chosen if index not in room]
    if missing:
        there_are = ", ".join(f"GPU {index}" for index in room) or "none at all"
        return f"there is no GPU {missing[0]}", f"there are {there_are}"
    if not chosen and model.runtime is Runtime.VLLM:
        return "vLLM needs a GPU", "a machine with one"
    left = min(room[index] for index in chosen) * len(chosen) if chosen else host_bytes
    if model.memory_bytes > left:
        return f"it needs {gib(model.memory_bytes)}, and {gib(left)} are left", "fewer or smaller models"
    return None
