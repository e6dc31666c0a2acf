"""The plan of a machine: devices, settings and models in, instances out. It is pure: it reads no file, asks
no device and starts nothing, and the same input gives the same plan.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import msgspec

from balancer.core.device import Device
from balancer.core.plan import Plan, PlannedDevice, PlannedInstance, Runtime
from balancer.provisioning.addresses import Addresses
from balancer.provisioning.contexts import Models, context_length
from balancer.provisioning.demands import called, unmet
from balancer.provisioning.kv_cache import DEFAULT_CACHE_TYPE, KnownModel
from balancer.provisioning.runtimes.shares import left_for_ollama
from balancer.provisioning.tiers import divide, gib, usable_bytes
from balancer.settings import DeviceSettings, GpuInstanceSettings, Settings, SettingsError

_CPU_WEIGHT = 0.1
_LEAST_WEIGHT = 0.001
_LEAST_BYTES = 2**30


def make_plan(
    devices: Sequence[Device],
    host_memory_bytes: int,
    settings: Settings,
    *,
    models: Sequence[KnownModel] = (),
    served: Sequence[PlannedInstance] = (),
    kv_cache_type: str = DEFAULT_CACHE_TYPE,
    port_is_free: Callable[[int], bool] = lambda port: True,
    weight_of: Callable[[Device], float] = lambda device: 1.0,
    tidies: bool = True,
) -> Plan:
    """What is to be started on a machine with these GPUs, no two of one key, and this memory. Those that are
    split by MIG are left out; detection tells it.

    `served` are those of vLLM and llama-server, as `served_models` places them on these GPUs: they stay
    as they are and get a weight, and Ollama is planned on what they leave.

    Shares are reservations: those on a device are together at most its memory, those on the CPU and all
    prompt caches together at most the host's. The `free_bytes` of a device should count as free what
    instances of an earlier plan hold, or a restart would plan otherwise. `port_is_free` is asked of each
    port that is to be given.

    `weight_of`, which is above 0, compares GPUs with one another, in any unit. It is divided by its mean
    over the GPUs here, so that the average GPU weighs 1, as an instance elsewhere does that settings give
    no weight. The Ollama instances on a GPU divide its weight; several GPUs weigh what the slowest does,
    a CPU 0.1.

    One Ollama may tidy the store that they share, where `tidies`, and else none.

    Raises: SettingsError where settings name a GPU that is not there, want more than there is, or want
    one port twice.
    """
    gpus = sorted((device for device in devices if not device.mig), key=lambda device: device.index)
    if not settings.load_balancing.enabled:
        settings = _single(gpus, settings, served)
    weights = {gpu.key: weight_of(gpu) for gpu in gpus}
    average = fmean(weights.values()) if weights else 1.0
    planner = _Planner(
        host_bytes=host_memory_bytes,
        settings=settings,
        models=Models(
            known=models,
            named=settings.provisioning.model,
            assumed_bytes=settings.provisioning.model_size_estimate_bytes,
        ),
        kv_cache_type=kv_cache_type,
        addresses=Addresses(
            settings,
            taken_names=[each.name for each in served],
            taken_ports=[each.port for each in served],
            is_free=port_is_free,
        ),
        weights={key: weight / average for key, weight in weights.items()},
        tidies=tidies,
    )
    return planner.plan(gpus, served)


class _Planner(msgspec.Struct, frozen=True, kw_only=True):
    host_bytes: int
    settings: Settings
    models: Models
    kv_cache_type: str
    addresses: Addresses
    weights: Mapping[str, float]
    tidies: bool

    def plan(self, gpus: Sequence[Device], served: Sequence[PlannedInstance]) -> Plan:
        rests = left_for_ollama(gpus, served)
        if faults := unmet(self.settings, rests, served):
            raise SettingsError(faults)
        replace = msgspec.structs.replace
        alone = [replace(each, weight=self._weight(each.devices, 1)) for each in served]
        planned = [
            PlannedDevice(
                name=gpu.name,
                memory_bytes=gpu.memory_bytes,
                instances=(*(each for each in alone if each.devices == (gpu.key,)), *self._on_gpu(rest)),
                gpu=gpu,
            )
            for gpu, rest in zip(gpus, rests, strict=True)
        ]
        notes = [note for device in planned if (note := _note(device))]
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
            weight=self._weight([gpu.key], division.count),
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
                weight=self._weight([gpu.key], len(items)),
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
                weight=self._weight([], 1),
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
            weight=self._weight([gpu.key for gpu in free], 1),
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

    def _weight(self, keys: Sequence[str], count: int) -> float:
        slowest = min((self.weights[key] for key in keys), default=_CPU_WEIGHT)
        return max(round(slowest / count, 3), _LEAST_WEIGHT)

    def _shared(self, plan: Plan) -> Plan:
        """With what instances share: host memory for prompt caches, and a store that one of them tidies."""
        on_host = sum(each.memory_bytes for each in plan.instances if not each.devices)
        caching = sum(each.runtime is not Runtime.VLLM for each in plan.instances)
        promised = int(self.host_bytes * self.settings.cache.max_memory_percent / 100)
        cache = max(min(promised, self.host_bytes - on_host), 0) // max(caching, 1)
        ollamas = (each.name for each in plan.instances if each.runtime is Runtime.OLLAMA)
        pruning = next(ollamas, None) if self.tidies else None

        def shared(each: PlannedInstance) -> PlannedInstance:
            own = 0 if each.runtime is Runtime.VLLM else cache
            return msgspec.structs.replace(each, prompt_cache_bytes=own, prunes=each.name == pruning)

        devices = [
            msgspec.structs.replace(device, instances=tuple(map(shared, device.instances)))
            for device in plan.devices
        ]
        spanning = tuple(map(shared, plan.spanning))
        return msgspec.structs.replace(plan, devices=tuple(devices), spanning=spanning)


def _single(gpus: Sequence[Device], settings: Settings, served: Sequence[PlannedInstance]) -> Settings:
    """For one Ollama, where nothing is to be chosen: on the first GPU that is named, else that is free of
    served models, else on the first, but none that settings leave alone or that has too little memory."""
    items = settings.gpu_instances[:1]
    own = settings.provisioning.devices
    alone = {each.gpu_id for each in own if not each.instances}
    able = [gpu for gpu in gpus if gpu.index not in alone and gpu.memory_bytes >= _LEAST_BYTES]
    taken = {key for each in served for key in each.devices}
    free = [gpu.index for gpu in able if gpu.key not in taken] or [gpu.index for gpu in able]
    chosen = items[0].gpu_id if items else next(iter(free), None)
    others = (DeviceSettings(gpu_id=gpu.index, instances=0) for gpu in gpus if gpu.index != chosen)
    missing = (each for each in own if each.gpu_id not in {gpu.index for gpu in gpus})
    narrowed = {"several_instances": False, "cpu_instance": False, "devices": (*others, *missing)}
    provisioning = settings.provisioning.model_copy(update=narrowed)
    return settings.model_copy(update={"gpu_instances": items, "provisioning": provisioning})


def _note(device: PlannedDevice) -> str:
    gpu = device.gpu
    if gpu is None:
        return ""
    if not any(each.runtime is Runtime.OLLAMA for each in device.instances):
        return f"{called(gpu)} has no Ollama: nothing is left for it, or settings leave it alone"
    if gpu.free_bytes < gpu.memory_bytes // 2:
        return f"only {gib(gpu.free_bytes)} of {gib(gpu.memory_bytes)} are free on {called(gpu)}"
    return ""
