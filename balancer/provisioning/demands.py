"""What settings want of a machine and it does not have, told before anything is planned."""

from collections.abc import Iterator, Sequence

from balancer.core.device import Device
from balancer.core.plan import PlannedInstance
from balancer.provisioning.tiers import gib, usable_bytes
from balancer.settings import Fault, GpuInstanceSettings, Settings

_MACHINE = "this machine"


def unmet(settings: Settings, gpus: Sequence[Device], served: Sequence[PlannedInstance]) -> list[Fault]:
    """A fault for each GPU that is named and not there, for memory limits that do not fit, and for each port
    that two want. `gpus` have what `served` leave."""
    return [
        *_missing(settings, gpus),
        *(fault for gpu in gpus for fault in _too_large(settings, gpu)),
        *_ports(settings.gpu_instances, served),
    ]


def called(gpu: Device) -> str:
    """A GPU as messages name it."""
    return f"GPU {gpu.index} ({gpu.name})"


def _missing(settings: Settings, gpus: Sequence[Device]) -> Iterator[Fault]:
    named = [(f"gpu_instances[{at}].gpu_id", each.gpu_id) for at, each in enumerate(settings.gpu_instances)]
    named += [
        (f"provisioning.devices[{at}].gpu_id", each.gpu_id)
        for at, each in enumerate(settings.provisioning.devices)
    ]
    known = {gpu.index for gpu in gpus}
    there_are = "there are " + ", ".join(map(called, gpus)) if gpus else "there is none at all"
    for key, gpu_id in named:
        if gpu_id not in known:
            yield Fault(_MACHINE, key, f"there is no GPU {gpu_id}", there_are)


def _too_large(settings: Settings, gpu: Device) -> Iterator[Fault]:
    items = [each for each in settings.gpu_instances if each.gpu_id == gpu.index]
    wanted = sum(each.memory_limit or 0 for each in items)
    names = " and ".join(f"'{each.name}'" for each in items if each.memory_limit is not None)
    if wanted > gpu.memory_bytes:
        problem = f"{names} want {gib(wanted)} of {called(gpu)}, where {gib(gpu.memory_bytes)} are to be had"
        yield Fault(_MACHINE, "gpu_instances", problem, "limits that fit together")
    elif wanted >= usable_bytes(gpu, settings.provisioning):
        for each in items:
            if each.memory_limit is None:
                problem = f"nothing of {called(gpu)} is left for '{each.name}' beside {names}"
                yield Fault(_MACHINE, "gpu_instances", problem, "lower limits, or one for each")


def _ports(items: Sequence[GpuInstanceSettings], served: Sequence[PlannedInstance]) -> Iterator[Fault]:
    first: dict[int, str] = {}
    wanted = [(each.port, each.name) for each in items]
    wanted += [(each.port, each.name) for each in served]
    for port, name in wanted:
        if port in first:
            yield Fault(_MACHINE, "port", f"'{first[port]}' and '{name}' both want {port}", "a port each")
        first.setdefault(port, name)
