"""Made-up machines, and the plans that are made for them."""

from typing import Any

import pytest

from balancer.core.device import Device
from balancer.core.plan import Plan, PlannedInstance, Runtime
from balancer.provisioning.kv_cache import CacheShape
from balancer.provisioning.plan import make_plan
from balancer.settings import Settings, SettingsError

MIB, GIB = 2**20, 2**30
HOST = 64 * GIB
LLAMA = CacheShape(full_elements=32 * 8 * 256)


def gpu(index: int, mib: int, **changes: Any) -> Device:
    facts: dict[str, Any] = {"name": f"card {index}", "memory_bytes": mib * MIB, "free_bytes": mib * MIB}
    return Device(index=index, **(facts | changes))


def settings(provisioning: dict[str, Any] | None = None, **others: Any) -> Settings:
    return Settings.model_validate({"provisioning": provisioning or {}, **others})


def plan(*gpus: Device, host: int = HOST, told: Settings | None = None, **others: Any) -> Plan:
    return make_plan(gpus, host, told or Settings(), **others)


def serving(
    name: str, *keys: str, gib: float, port: int = 9000, runtime: Runtime = Runtime.VLLM, **more: Any
) -> PlannedInstance:
    """One of vLLM or llama-server that has its place already."""
    return PlannedInstance(
        name=name,
        port=port,
        runtime=runtime,
        devices=keys,
        memory_bytes=int(gib * GIB),
        reason="a test",
        models=(name,),
        model_path=f"/models/{name}",
        **more,
    )


def counts(planned: Plan) -> list[int]:
    return [len(device.instances) for device in planned.devices]


def names(planned: Plan) -> list[str]:
    return [each.name for each in planned.instances]


def by_name(planned: Plan, name: str) -> PlannedInstance:
    return next(each for each in planned.instances if each.name == name)


def faults(*gpus: Device, told: Settings, **others: Any) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        plan(*gpus, told=told, **others)
    return [str(fault) for fault in raised.value.faults]
