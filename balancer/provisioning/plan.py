"""The plan of a machine: devices, settings and models in, instances out. It is pure: it reads no file, asks
no device and starts nothing, and the same input gives the same plan.
"""

from collections.abc import Callable, Collection, Sequence

import msgspec

from balancer.core.device import Device
from balancer.core.plan import Plan, PlannedDevice, PlannedInstance, Runtime
from balancer.provisioning.addresses import Addresses
from balancer.provisioning.contexts import Models, context_length
from balancer.provisioning.demands import called, unmet
from balancer.provisioning.kv_cache import DEFAULT_CACHE_TYPE, KnownModel
from balancer.provisioning.served import Placed, ServedModel, place
from balancer.provisioning.tiers import divide, gib, usable_bytes
from balancer.settings import GpuInstanceSettings, Settings, SettingsError

_CPU_WEIGHT = 0.1
_LEAST_WEIGHT = 0.001
_LEAST_BYTES = 2**30


def make_plan(
    devices: Sequence[Device],
    host_memory_bytes: int,
    settings: Settings,
    *,
    models: Sequence[KnownModel] = (),
    served: Sequence[ServedModel] = (),
    kv_cache_type: str = DEFAULT_CACHE_TYPE,
    taken_ports: Collection[int] = (),
    weight_of: Callable[[Device], float] = lambda device: 1.0,
) -> Plan:
    """What is to be started on a machine with these GPUs and this memory.

    Shares are reservations: those on a device are together at most its memory, those on the CPU and all
    prompt caches together at most the host's. The `free_bytes` of a device should count as free what
    instances of an earlier plan hold, or a restart would plan otherwise. `weight_of` is relative to an
    instance elsewhere, which weighs 1; instances on one device divide its weight.

    Raises: SettingsError where settings name a GPU that is not there, want more than there is, or want
    one port twice.
    """
    if not settings.load_balancing.enabled:
        devices, settings = _single(devices, settings)
    planner = _Planner(
        host_bytes=host_memory_bytes,
        settings=settings,
        models=Models(
            known=models,
            named=settings.provisioning.model,
            assumed_bytes=settings.provisioning.model_size_estimate_bytes,
        ),
        kv_cache_type=kv_cache_type,
        addresses=Addresses(settings, {*taken_ports, *(each.port for each in served)}),
        weight_of=weight_of,
    )
    return planner.plan(sorted(devices, key=lambda device: device.index), served)


class _Planner(msgspec.Struct, frozen=True, kw_only=True):
    host_bytes: int
    settings: Settings
    models: Models
    kv_cache_type: str
    addresses: Addresses
    weight_of: Callable[[Device], float]

    def plan(self, devices: Sequence[Device], served: Sequence[ServedModel]) -> Plan:
        gpus = [device for device in devices if not device.mig]
        placed, faults = place(served, gpus, host_bytes=self.host_bytes)
        rests = [_without(gpu, sum(each.parts.get(gpu.index, 0) for each in placed)) for gpu in gpus]
        faults += unmet(self.settings, rests, served)
        if faults:
            raise SettingsError(faults)
        alone = [self._alone(each, gpus) for each in placed]
        planned = [
            PlannedDevice(
                name=gpu.name,
                memory_bytes=gpu.memory_bytes,
                instances=(*(each for each in alone if each.devices == (gpu.key,)), *self._on_gpu(rest)),
                gpu=gpu,
            )
            for gpu, rest in zip(gpus, rests, strict=True)
        ]
        notes = [f"{called(device)} is split by MIG and left alone" for device in devices if device.mig]
        notes += [note for device in planned if (note := _note(device))]
        planned += self._cpu(
            [each for each in alone if not each.devices],
            without_gpu=not any(device.instances for device in planned),
        )
        spanning = [*(each for each in alone if len(each.devices) > 1), *self._spanning(rests)]
        return self._shared(Plan(devices=tuple(planned), spanning=tuple(spanning), notes=tuple(notes)))

    def _on_gpu(self, gpu: Device) -> list[PlannedInstance]:
        items = [each for each in self.settings.gpu_instances if each.gpu_id == gpu.index]
        if items:
            return self._verbatim(gpu, items)
        if gpu.memory_bytes < _LEAST_BYTES:
            return []
        division = divide(gpu, self.settings.provisioning)
        if not division.count:
            return []
        base = f"gpu{gpu.index}"
        names = [base] if division.count == 1 else [f"{base}-{1 + each}" for each in range(division.count)]
        return self._ollama(
            names,
            devices=(gpu,),
            share=division.share_bytes,
            why=division.reason,
            weight=self._weight([gpu], division.count),
        )

    def _verbatim(self, gpu: Device, items: Sequence[GpuInstanceSettings]) -> list[PlannedInstance]:
        limits = sum(each.memory_limit or 0 for each in items)
        open_ended = sum(each.memory_limit is None for each in items)
        left = usable_bytes(gpu, self.settings.provisioning) - limits
        return [
            instance
            for each in items
            for instance in self._ollama(
                [each.name],
                devices=(gpu,),
                share=each.memory_limit or left // open_ended,
                why="by gpu_instances",
                weight=self._weight([gpu], len(items)),
                item=each,
            )
        ]

    def _cpu(self, alone: Sequence[PlannedInstance], *, without_gpu: bool) -> list[PlannedDevice]:
        instances = list(alone)
        if without_gpu or self.settings.provisioning.cpu_instance:
            left = self.host_bytes - sum(each.memory_bytes for each in alone)
            share, why = (2, "no GPU: half") if without_gpu else (4, "for small models: a quarter")
            instances += self._ollama(
                ["cpu"],
                devices=(),
                share=min(self.host_bytes // share, left),
                why=f"{why} of the memory",
                weight=_CPU_WEIGHT,
            )
        device = PlannedDevice(name="CPU", memory_bytes=self.host_bytes, instances=tuple(instances))
        return [device] if instances else []

    def _spanning(self, gpus: Sequence[Device]) -> list[PlannedInstance]:
        """One over the GPUs that are planned for by memory. It reserves nothing: what it needs is lent."""
        told = {each.gpu_id for each in self.settings.gpu_instances}
        told |= {each.gpu_id for each in self.settings.provisioning.devices if not each.instances}
        free = [gpu for gpu in gpus if gpu.index not in told and gpu.memory_bytes >= _LEAST_BYTES]
        if len(free) < 2 or not self.settings.load_balancing.enabled:
            return []
        rooms = [usable_bytes(gpu, self.settings.provisioning) for gpu in free]
        spanning = self._ollama(
            ["gpus"],
            devices=free,
            share=sum(rooms),
            why="for models that no single GPU holds",
            weight=self._weight(free, 1),
            model=self.models.too_large_for(max(rooms)),
        )
        return [msgspec.structs.replace(each, memory_bytes=0) for each in spanning]

    def _ollama(
        self,
        names: Sequence[str],
        *,
        devices: Sequence[Device],
        share: int,
        why: str,
        weight: float,
        item: GpuInstanceSettings | None = None,
        model: KnownModel | None = None,
    ) -> list[PlannedInstance]:
        """Instances that differ by name and port only; those of `item` have its own."""
        models = item.models if item else ()
        most = item.max_concurrent_requests if item else None
        slots = min(self.settings.provisioning.slots, most or self.settings.provisioning.slots)
        context, because = context_length(
            model or self.models.meant_for(models),
            share_bytes=share,
            slots=slots,
            cache_type=self.kv_cache_type,
        )
        return [
            PlannedInstance(
                name=item.name if item else self.addresses.name(name),
                port=item.port if item else self.addresses.port(),
                runtime=Runtime.OLLAMA,
                devices=tuple(gpu.key for gpu in devices),
                memory_bytes=share,
                reason=f"{why}; {because}",
                slots=slots,
                context_length=context,
                models=models,
                max_concurrent_requests=most,
                weight=weight,
            )
            for name in names
        ]

    def _alone(self, placed: Placed, gpus: Sequence[Device]) -> PlannedInstance:
        model, own = placed.model, [gpu for gpu in gpus if gpu.index in placed.parts]
        return PlannedInstance(
            name=self.addresses.name(model.name.replace("/", "-")),
            port=model.port or self.addresses.port(),
            runtime=model.runtime,
            devices=tuple(gpu.key for gpu in own),
            memory_bytes=model.memory_bytes,
            reason=f"serves {model.name} alone",
            slots=model.slots,
            context_length=model.context_length,
            models=(model.name,),
            model_path=model.path,
            weight=self._weight(own, 1),
        )

    def _weight(self, gpus: Sequence[Device], count: int) -> float:
        slowest = min(map(self.weight_of, gpus), default=_CPU_WEIGHT)
        return max(round(slowest / count, 3), _LEAST_WEIGHT)

    def _shared(self, plan: Plan) -> Plan:
        """With what instances share: host memory for prompt caches, and a store that one of them tidies."""
        on_host = sum(each.memory_bytes for each in plan.instances if not each.devices)
        caching = sum(each.runtime is not Runtime.VLLM for each in plan.instances)
        promised = int(self.host_bytes * self.settings.cache.max_memory_percent / 100)
        cache = max(min(promised, self.host_bytes - on_host), 0) // max(caching, 1)
        pruning = next((each.name for each in plan.instances if each.runtime is Runtime.OLLAMA), None)

        def shared(each: PlannedInstance) -> PlannedInstance:
            own = 0 if each.runtime is Runtime.VLLM else cache
            return msgspec.structs.replace(each, prompt_cache_bytes=own, prunes=each.name == pruning)

        devices = [
            msgspec.structs.replace(device, instances=tuple(map(shared, device.instances)))
            for device in plan.devices
        ]
        spanning = tuple(map(shared, plan.spanning))
        return msgspec.structs.replace(plan, devices=tuple(devices), spanning=spanning)


def _single(devices: Sequence[Device], settings: Settings) -> tuple[Sequence[Device], Settings]:
    """What is left where nothing is to be chosen: one instance, on the first or the first named device."""
    items = settings.gpu_instances[:1]
    usable = sorted((each for each in devices if not each.mig), key=lambda each: each.index)
    named = [each for each in usable if items and each.index == items[0].gpu_id]
    narrowed = {"several_instances": False, "cpu_instance": False, "devices": ()}
    provisioning = settings.provisioning.model_copy(update=narrowed)
    changed = settings.model_copy(update={"gpu_instances": items, "provisioning": provisioning})
    return (named or usable if items else usable[:1]), changed


def _without(gpu: Device, taken: int) -> Device:
    memory, free = max(gpu.memory_bytes - taken, 0), max(gpu.free_bytes - taken, 0)
    return msgspec.structs.replace(gpu, memory_bytes=memory, free_bytes=free)


def _note(device: PlannedDevice) -> str:
    gpu = device.gpu
    if gpu is None:
        return ""
    if not any(each.runtime is Runtime.OLLAMA for each in device.instances):
        return f"{called(gpu)} has no Ollama: nothing is left for it, or settings leave it alone"
    if gpu.free_bytes < gpu.memory_bytes // 2:
        return f"only {gib(gpu.free_bytes)} of {gib(gpu.memory_bytes)} are free on {called(gpu)}"
    return ""
