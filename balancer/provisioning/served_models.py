"""The instances of runtimes that serve one model each, from their entries in the settings: on which devices,
with which share, the smallest first.

They are planned before those of Ollama, which get what is left: vLLM and llama-server take their memory at
the start and keep it.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from balancer.core.device import CPU, Device
from balancer.core.plan import PlannedInstance, Runtime
from balancer.provisioning.model_files import ModelFiles, Refused, runtime_of
from balancer.provisioning.runtimes.base import CannotLaunch, Host, absolute
from balancer.provisioning.runtimes.shares import check_shares, split_over
from balancer.settings import ServedModelSettings, Settings

_GIB = 2**30
_PART = re.compile(r"(.*-)00001(-of-[0-9]{5}\.gguf)\Z")
_UNNAMEABLE = re.compile(r"[^ -.0-~]")
_NAME_CHARACTERS = 64

# What a model takes beside its weights is known only once it runs; these are first guesses. vLLM took 2 to
# 2.5 times the weights with caches of 1024 to 2048 tokens (vLLM 0.10.1.1, three models on an RTX 5090).
# llama-server keeps weights, one cache and compute buffers of up to 2 GiB.
_VLLM_FACTOR = 2.5
_LLAMA_SERVER_BESIDE = 1 * _GIB
_LEAST_FACTOR = 1.2
# The rest is for what else is on a device, such as the context of each process.
_MOST_OF_ROOM = 0.95


@dataclass(frozen=True, slots=True)
class _Entry:
    """A model of the settings with what was found out about it; `setting` is where it stands."""

    setting: str
    runtime: Runtime
    model: ServedModelSettings
    path: str
    weights_bytes: int
    projector: str = ""

    @property
    def guess_bytes(self) -> int:
        if self.runtime is Runtime.VLLM:
            return round(self.weights_bytes * _VLLM_FACTOR)
        return self.least_bytes + _LLAMA_SERVER_BESIDE

    @property
    def least_bytes(self) -> int:
        return round(self.weights_bytes * _LEAST_FACTOR)


@dataclass(frozen=True, slots=True)
class _Seat:
    """Where an instance is to run, and with how much memory of all its devices together."""

    devices: tuple[Device, ...]
    memory_bytes: int

    @property
    def taken_bytes(self) -> Mapping[str, int]:
        """What it takes of each of its devices, by key."""
        return split_over(self.memory_bytes, self.devices) if self.devices else {CPU: self.memory_bytes}


def served_models(host: Host, *, host_memory_bytes: int, ports: Iterator[int]) -> tuple[PlannedInstance, ...]:
    """The instances that the entries of `runtimes.vllm.models` and `runtimes.llama_server.models` ask for, in
    the order in which they are to be started: smallest first, each ready before the next of its device,
    since vLLM counts as its own what another takes while it measures. Their names are none that the
    settings give. Reads the beginnings of files; whether a program is there is for the launch to see.

    Raises:
        CannotLaunch: a model is not there or none for its runtime, a device is not there, or a device or the
            host has too little memory.
    """
    entries = sorted(_entries(host), key=lambda each: (each.weights_bytes, each.model.name))
    left = {device.key: _usable(device, host.settings) for device in host.devices}
    left[CPU] = host_memory_bytes
    seats: dict[int, _Seat] = {}
    # Those that name their devices come before those that take what is left, and of these the largest first.
    for index in sorted(range(len(entries)), key=lambda each: (not entries[each].model.devices, -each)):
        seat = _seat(entries[index], host.devices, left, host_memory_bytes)
        for key, taken in seat.taken_bytes.items():
            left[key] -= taken
        seats[index] = seat
    names = _Names({each.name for each in host.settings.all_instances})
    instances = tuple(
        _instance(entry, seats[index], name=names.of(entry), port=next(ports))
        for index, entry in enumerate(entries)
    )
    check_shares(instances, host.devices)
    return instances


def weights_bytes(path: Path) -> int:
    """The size of a model's weights: a GGUF file with its further parts, or all safetensors of a folder.

    Raises:
        CannotLaunch: there are none.
    """
    try:
        files = list(path.glob("*.safetensors")) if path.is_dir() else _parts(path)
        size = sum(file.stat().st_size for file in files)
    except OSError as error:
        raise CannotLaunch(f"{path} cannot be read: {error.strerror}") from error
    if size == 0:
        raise CannotLaunch(
            f"{path} holds no weights: a folder with safetensors files or a GGUF file is needed"
        )
    return size


def _parts(path: Path) -> list[Path]:
    match = _PART.match(path.name)
    if match is None:
        return [path]
    return [
        each
        for each in path.parent.iterdir()
        if each.name.startswith(match[1]) and each.name.endswith(match[2])
    ]


def _entries(host: Host) -> Iterator[_Entry]:
    runtimes = host.settings.runtimes
    for model in runtimes.vllm.models if runtimes.vllm.enabled else ():
        path = absolute(model.path, host.environ)
        yield _Entry("runtimes.vllm.models", Runtime.VLLM, model, str(path), weights_bytes(path))
    for model in runtimes.llama_server.models:
        told = _looked_at(model, host)
        if Runtime.VLLM in told.runtimes:
            raise CannotLaunch(f"model '{model.name}' is none for llama-server: {told.reason}")
        yield _entry("runtimes.llama_server.models", Runtime.LLAMA_SERVER, model, told)
    for model in runtimes.models:
        told = _looked_at(model, host)
        alone = [each for each in told.runtimes if each is not Runtime.OLLAMA]
        if not alone:
            raise CannotLaunch(f"model '{model.name}' is one for Ollama, which has a store: {told.reason}")
        yield _entry("runtimes.models", alone[0], model, told)


def _entry(setting: str, runtime: Runtime, model: ServedModelSettings, told: ModelFiles) -> _Entry:
    return _Entry(setting, runtime, model, told.path, told.size_bytes, told.projector)


def _looked_at(model: ServedModelSettings, host: Host) -> ModelFiles:
    """What the files of a model tell. Raises CannotLaunch where no runtime serves it."""
    enabled = host.settings.runtimes.vllm.enabled
    told = runtime_of(absolute(model.path, host.environ), vllm_enabled=enabled)
    if isinstance(told, Refused):
        raise CannotLaunch(f"model '{model.name}': {told.reason}")
    return told


def _usable(device: Device, settings: Settings) -> int:
    """All of it; what is free where others hold more than the reserve, so that small changes of free memory
    change no plan."""
    held = device.memory_bytes - device.free_bytes
    return device.memory_bytes if held <= settings.provisioning.memory_reserve_bytes else device.free_bytes


def _devices(entry: _Entry, devices: Sequence[Device], left: Mapping[str, int]) -> tuple[Device, ...]:
    named = entry.model.devices
    if CPU in (name.lower() for name in named):
        if len(named) > 1 or entry.runtime is Runtime.VLLM:
            raise CannotLaunch(f"model '{entry.model.name}': [cpu] is for llama-server, and stands alone")
        return ()
    if named:
        chosen = tuple(_device(entry, name, devices) for name in named)
        if len({device.key for device in chosen}) < len(chosen):
            raise CannotLaunch(f"model '{entry.model.name}' names a GPU twice in its devices")
        return chosen
    if devices:
        return (max(devices, key=lambda device: left[device.key]),)
    if entry.runtime is Runtime.VLLM:
        raise CannotLaunch(f"vLLM needs a GPU for model '{entry.model.name}', and none was found")
    return ()


def _device(entry: _Entry, name: str, devices: Sequence[Device]) -> Device:
    for device in devices:
        if name in (device.uuid, str(device.index)):
            return device
    there = ", ".join(f"{device.index} ({device.name})" for device in devices) or "none"
    raise CannotLaunch(f"model '{entry.model.name}' is to run on GPU '{name}'; the GPUs here are {there}")


def _seat(entry: _Entry, devices: Sequence[Device], left: Mapping[str, int], host_memory_bytes: int) -> _Seat:
    """Where it runs, with the share asked for, else with what is guessed or at least fits. Whether the shares
    of a GPU fit together is seen once all are known."""
    chosen = _devices(entry, devices, left)
    share, room = entry.model.memory_share, _room(chosen, left)
    if share is None:
        memory_bytes = min(entry.guess_bytes, round(room * _MOST_OF_ROOM))
        fits, wanted = memory_bytes >= entry.least_bytes, f"{entry.weights_bytes / _GIB:.1f} GiB of weights"
    else:
        whole = sum(device.memory_bytes for device in chosen) if chosen else host_memory_bytes
        memory_bytes = round(share * whole)
        fits, wanted = memory_bytes > 0 and (bool(chosen) or memory_bytes <= room), f"memory_share {share:g}"
    if not fits:
        places = ", ".join(f"GPU {device.index} ({device.name})" for device in chosen) or "this host"
        raise CannotLaunch(
            f"model '{entry.model.name}' has {wanted}, and {places} has {max(room, 0) / _GIB:.1f} GiB left "
            "for it: name other devices, or fewer models"
        )
    return _Seat(chosen, memory_bytes)


def _room(chosen: Sequence[Device], left: Mapping[str, int]) -> int:
    """What is left of these devices together, the same share of each."""
    if not chosen:
        return left[CPU]
    whole = sum(device.memory_bytes for device in chosen)
    return min(left[device.key] * whole // max(device.memory_bytes, 1) for device in chosen)


def _instance(entry: _Entry, seat: _Seat, *, name: str, port: int) -> PlannedInstance:
    model = entry.model
    weights = f"guessed from {entry.weights_bytes / _GIB:.1f} GiB of weights"
    asked = weights if model.memory_share is None else f"memory_share {model.memory_share:g}"
    return PlannedInstance(
        name=name,
        port=port,
        runtime=entry.runtime,
        devices=tuple(device.key for device in seat.devices),
        memory_bytes=seat.memory_bytes,
        reason=f"'{model.name}' of {entry.setting}: {seat.memory_bytes / _GIB:.1f} GiB, {asked}",
        slots=model.slots,
        context_length=model.context_length,
        models=(model.name,),
        model_path=entry.path,
        projector_path=entry.projector,
    )


class _Names:
    """A name of its own for each instance, readable, and fit for a header and a path."""

    def __init__(self, taken: Collection[str]) -> None:
        self._given = set(taken)

    def of(self, entry: _Entry) -> str:
        plain = _UNNAMEABLE.sub("-", f"{entry.runtime.value}-{entry.model.name}")
        name, number = plain[:_NAME_CHARACTERS], 2
        while name in self._given:
            ending = f"-{number}"
            name, number = plain[: _NAME_CHARACTERS - len(ending)] + ending, number + 1
        self._given.add(name)
        return name
