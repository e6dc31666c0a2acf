"""The plan of a machine whose instances are written down, and what it does not have."""

from typing import Any

import pytest

from balancer.settings import Settings
from tests.unit.plan_support import (
    GIB,
    by_name,
    faults,
    gpu,
    names,
    plan,
    settings,
)


def test_gpu_instances_are_kept_as_they_are() -> None:
    item = {
        "gpu_id": 1,
        "name": "RTX 4070 Ti",
        "port": 11434,
        "memory_limit": "11GB",
        "models": ["codegemma:7b", "gemma2:9b"],
        "max_concurrent_requests": 3,
    }

    planned = plan(gpu(0, 8188), gpu(1, 12288), told=settings({"slots": 4}, gpu_instances=[item]))

    assert names(planned) == ["gpu0", "RTX 4070 Ti"]
    own = by_name(planned, "RTX 4070 Ti")
    assert (own.port, own.memory_bytes, own.devices) == (11434, 11 * 10**9, ("1",))
    assert (own.models, own.max_concurrent_requests, own.slots) == (("codegemma:7b", "gemma2:9b"), 3, 3)
    assert by_name(planned, "gpu0").slots == 4


def test_without_a_limit_gpu_instances_share_what_the_others_leave() -> None:
    items = [{"gpu_id": 0, "port": port} for port in (1, 2)]
    items.append({"gpu_id": 0, "port": 3, "memory_limit": "6GiB"})

    planned = plan(gpu(0, 24576), told=settings(gpu_instances=items))

    assert [each.memory_bytes for each in planned.instances] == [8 * GIB, 8 * GIB, 6 * GIB]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (
            {"gpu_instances": [{"gpu_id": 3, "port": 1}]},
            "this machine: gpu_instances[0].gpu_id: there is no GPU 3, there are GPU 0 (card 0), "
            "GPU 1 (card 1)",
        ),
        (
            {"provisioning": {"devices": [{"gpu_id": 7, "instances": 1}]}},
            "this machine: provisioning.devices[0].gpu_id: there is no GPU 7, there are GPU 0 (card 0), "
            "GPU 1 (card 1)",
        ),
        (
            {
                "gpu_instances": [
                    {"gpu_id": 0, "port": 1, "name": "a", "memory_limit": "5GiB"},
                    {"gpu_id": 0, "port": 2, "name": "b", "memory_limit": "4GiB"},
                ]
            },
            "this machine: gpu_instances: 'a' and 'b' want 9.0 GiB of GPU 0 (card 0), where 8.0 GiB are to "
            "be had, limits that fit together",
        ),
        (
            {
                "gpu_instances": [
                    {"gpu_id": 0, "port": 1, "name": "a", "memory_limit": "6GiB"},
                    {"gpu_id": 0, "port": 2, "name": "b"},
                ]
            },
            "this machine: gpu_instances: nothing of GPU 0 (card 0) is left for 'b' beside 'a', lower "
            "limits, or one for each",
        ),
        (
            {"gpu_instances": [{"gpu_id": 0, "port": 1, "name": "a"}, {"gpu_id": 1, "port": 1, "name": "b"}]},
            "this machine: port: 'a' and 'b' both want 1, a port each",
        ),
    ],
)
def test_what_a_machine_does_not_have_is_told(told: dict[str, Any], expected: str) -> None:
    assert faults(gpu(0, 8192), gpu(1, 8192), told=Settings.model_validate(told)) == [expected]


def test_a_gpu_instance_without_any_gpu_is_told() -> None:
    told = settings(gpu_instances=[{"gpu_id": 0, "port": 1}])

    assert faults(told=told) == [
        "this machine: gpu_instances[0].gpu_id: there is no GPU 0, there is none at all"
    ]
