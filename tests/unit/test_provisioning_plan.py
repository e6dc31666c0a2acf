"""The plan of a machine: tiers, overrides, shares, names, ports, weights and what instances share."""

from typing import Any

import pytest

from balancer.core.plan import Runtime
from balancer.provisioning.tiers import tier_of
from balancer.settings import Settings
from tests.unit.plan_support import (
    GIB,
    MIB,
    by_name,
    counts,
    faults,
    gpu,
    names,
    plan,
    serving,
    settings,
)


@pytest.mark.parametrize(
    ("mib", "card", "instances"),
    [
        (4096, "GTX 1650", 1),
        (8188, "RTX 4060", 1),
        (11264, "GTX 1080 Ti", 1),
        (12288, "RTX 3060", 1),
        (15109, "T4 with ECC", 2),
        (15360, "T4", 2),
        (16160, "V100 16 GB", 2),
        (16376, "RTX 4080", 2),
        (20475, "RTX 4000 Ada", 2),
        (22919, "P40", 3),
        (23034, "L4", 3),
        (24564, "RTX 4090", 3),
        (32607, "RTX 5090", 3),
        (32510, "V100 32 GB", 3),
        (40960, "A100 40 GB", 4),
        (46068, "L40S", 4),
        (49140, "RTX 6000 Ada", 4),
        (81559, "H100", 4),
        (143771, "H200", 4),
    ],
)
def test_real_cards_get_the_instances_of_the_size_they_are_sold_as(
    mib: int, card: str, instances: int
) -> None:
    assert tier_of(mib * MIB) == instances
    assert counts(plan(gpu(0, mib, name=card))) == [instances]


@pytest.mark.parametrize(
    ("below", "instances"), [(14 * GIB, 1), (22 * GIB, 2), (38 * GIB, 3)], ids=["14", "22", "38"]
)
def test_the_bounds_of_the_tiers(below: int, instances: int) -> None:
    assert tier_of(below - 1) == instances
    assert tier_of(below) == instances + 1


@pytest.mark.parametrize(
    ("provisioning", "expected"),
    [
        ({}, [3, 1]),
        ({"several_instances": False}, [1, 1]),
        ({"instances_per_device": 2}, [2, 2]),
        ({"max_instances_per_device": 2}, [2, 1]),
        ({"instances_per_device": 5, "max_instances_per_device": 2}, [2, 2]),
        ({"devices": [{"gpu_id": 1, "instances": 4}]}, [3, 4]),
        ({"devices": [{"gpu_id": 0, "instances": 0}]}, [0, 1]),
        ({"devices": [{"gpu_id": 1, "instances": 4}], "instances_per_device": 2}, [2, 4]),
        ({"devices": [{"gpu_id": 1, "instances": 4}], "several_instances": False}, [1, 1]),
        ({"devices": [{"gpu_id": 0, "instances": 0}], "several_instances": False}, [0, 1]),
        ({"model_size_estimate_bytes": "1.5GiB"}, [4, 4]),
        ({"model_size_estimate_bytes": "1.5GiB", "max_instances_per_device": 14}, [14, 6]),
        ({"model_size_estimate_bytes": "1.5GiB", "max_instances_per_device": 64}, [14, 6]),
        ({"model_size_estimate_bytes": "6GiB"}, [3, 1]),
        ({"model_size_estimate_bytes": "20GiB"}, [1, 1]),
        ({"model_size_estimate_bytes": "6GiB", "memory_reserve_bytes": 0}, [3, 2]),
        ({"model_size_estimate_bytes": "6GiB", "instances_per_device": 2}, [2, 2]),
    ],
)
def test_settings_decide_before_memory(provisioning: dict[str, Any], expected: list[int]) -> None:
    assert counts(plan(gpu(0, 24564), gpu(1, 12288), told=settings(provisioning))) == expected


def test_the_model_size_is_divided_into_what_is_free() -> None:
    told = settings({"model_size_estimate_bytes": "4GiB"})

    assert counts(plan(gpu(0, 24576, free_bytes=11 * GIB), told=told)) == [2]


def test_shares_are_equal_and_leave_the_reserve() -> None:
    planned = plan(gpu(0, 24576), told=settings({"memory_reserve_bytes": "3GiB"}))

    assert [each.memory_bytes for each in planned.instances] == [7 * GIB] * 3


def test_the_reserve_takes_at_most_half() -> None:
    planned = plan(gpu(0, 3072))

    assert [each.memory_bytes for each in planned.instances] == [1536 * MIB]


def test_small_changes_of_free_memory_change_no_plan() -> None:
    told = [plan(gpu(0, 24576, free_bytes=free * MIB)) for free in (24576, 24000, 22528)]

    assert told[0].instances == told[1].instances == told[2].instances


def test_what_others_hold_is_not_promised_and_is_told() -> None:
    planned = plan(gpu(0, 24576, free_bytes=6 * GIB))

    assert [each.memory_bytes for each in planned.instances] == [2 * GIB] * 3
    assert planned.notes == ("only 6.0 GiB of 24.0 GiB are free on GPU 0 (card 0)",)


def test_names_and_ports_follow_the_devices() -> None:
    planned = plan(gpu(2, 12288), gpu(0, 16376), told=settings({"cpu_instance": True}))

    assert names(planned) == ["gpu0-1", "gpu0-2", "gpu2", "cpu", "gpus"]
    assert [each.port for each in planned.instances] == [11500, 11501, 11502, 11503, 11504]
    assert [each.name for each in planned.devices] == ["card 0", "card 2", "CPU"]


def test_names_and_ports_of_the_configuration_are_passed_over() -> None:
    told = settings(
        {"first_port": 12000},
        instances=[{"url": "http://gpu9:12001", "name": "gpu0"}, {"url": "http://gpu9:1", "name": "gpu0-2"}],
        listen="127.0.0.1:12000",
        admin_listen="127.0.0.1:12003",
        metrics_listen="127.0.0.1:12004",
    )

    planned = plan(gpu(0, 8188), gpu(1, 8188), told=told, port_is_free=lambda port: port != 12005)

    assert [(each.name, each.port) for each in planned.instances] == [
        ("gpu0-3", 12002),
        ("gpu1", 12006),
        ("gpus", 12007),
    ]


def test_too_few_ports_are_told() -> None:
    told = settings({"first_port": 65534})

    assert "provisioning.first_port: no port is left" in faults(gpu(0, 24564), told=told)[0]
    assert counts(plan(gpu(0, 16376), told=told)) == [2]


def test_devices_are_named_by_uuid_where_they_have_one() -> None:
    planned = plan(gpu(0, 8188, uuid="GPU-a"), gpu(1, 8188))

    assert [each.devices for each in planned.instances] == [("GPU-a",), ("1",), ("GPU-a", "1")]


def test_a_machine_without_gpu_gets_one_instance_on_its_cpu() -> None:
    planned = plan(host=32 * GIB)

    assert names(planned) == ["cpu"]
    assert planned.devices[0].gpu is None
    assert planned.devices[0].memory_bytes == 32 * GIB
    assert by_name(planned, "cpu").memory_bytes == 16 * GIB
    assert by_name(planned, "cpu").devices == ()


def test_beside_gpus_the_cpu_gets_an_instance_only_where_it_is_asked_for() -> None:
    assert names(plan(gpu(0, 8188))) == ["gpu0"]
    asked = plan(gpu(0, 8188), told=settings({"cpu_instance": True}), host=32 * GIB)
    assert by_name(asked, "cpu").memory_bytes == 8 * GIB


def test_with_every_gpu_left_alone_the_cpu_serves() -> None:
    told = settings({"devices": [{"gpu_id": 0, "instances": 0}]})

    planned = plan(gpu(0, 8188), told=told)

    assert names(planned) == ["cpu"]
    assert "GPU 0 (card 0) has no Ollama" in planned.notes[0]


def test_a_gpu_split_by_mig_is_left_out() -> None:
    planned = plan(gpu(0, 40960, mig=True), gpu(1, 8188))

    assert names(planned) == ["gpu1"]
    assert [each.name for each in planned.devices] == ["card 1"]
    assert planned.notes == ()


def test_several_gpus_share_an_instance_that_reserves_nothing() -> None:
    planned = plan(gpu(0, 24564), gpu(1, 24564), gpu(2, 8188, mig=True))

    (spanning,) = planned.spanning
    assert (spanning.name, spanning.devices, spanning.memory_bytes) == ("gpus", ("0", "1"), 0)
    assert spanning.runtime is Runtime.OLLAMA
    assert planned.instances[-1] is spanning


@pytest.mark.parametrize(
    "told",
    [
        {"gpu_instances": [{"gpu_id": 0, "port": 1}]},
        {"provisioning": {"devices": [{"gpu_id": 1, "instances": 0}]}},
        {"load_balancing": {"enabled": False}},
    ],
)
def test_gpus_that_settings_speak_of_are_not_shared(told: dict[str, Any]) -> None:
    assert plan(gpu(0, 24564), gpu(1, 24564), told=Settings.model_validate(told)).spanning == ()


def test_without_load_balancing_there_is_one_instance() -> None:
    told = settings({"cpu_instance": True, "instances_per_device": 4}, load_balancing={"enabled": False})

    planned = plan(gpu(0, 8188, mig=True), gpu(1, 24576), gpu(2, 24576), told=told)

    (only,) = planned.instances
    assert (only.name, only.devices, only.memory_bytes) == ("gpu1", ("1",), 22 * GIB)
    assert [note.partition(":")[0] for note in planned.notes] == ["GPU 2 (card 2) has no Ollama"]


@pytest.mark.parametrize(("taken", "chosen"), [(["0"], "gpu1"), (["1"], "gpu0"), (["0", "1"], "gpu0")])
def test_without_load_balancing_the_one_ollama_goes_where_no_other_is(taken: list[str], chosen: str) -> None:
    told = settings(load_balancing={"enabled": False})
    served = [serving(f"v{key}", key, gib=4, port=9000 + int(key)) for key in taken]

    planned = plan(gpu(0, 24576), gpu(1, 24576), told=told, served=served)

    assert [each.name for each in planned.instances if each.runtime is Runtime.OLLAMA] == [chosen]
    assert {each.name for each in served} < set(names(planned))


def test_without_load_balancing_a_gpu_that_is_left_alone_or_has_no_memory_is_not_chosen() -> None:
    told = settings({"devices": [{"gpu_id": 1, "instances": 0}]}, load_balancing={"enabled": False})

    assert names(plan(gpu(0, 512), gpu(1, 24576), gpu(2, 24576), told=told)) == ["gpu2"]
    assert names(plan(gpu(0, 512), gpu(1, 24576), told=told)) == ["cpu"]
    assert "there is no GPU 1" in faults(gpu(0, 24576), told=told)[0]


def test_without_load_balancing_the_first_of_gpu_instances_stays() -> None:
    items = [{"gpu_id": 1, "port": 5}, {"gpu_id": 0, "port": 6}]
    told = settings(gpu_instances=items, load_balancing={"enabled": False})

    (only,) = plan(gpu(0, 8188), gpu(1, 8188), told=told).instances
    assert (only.port, only.devices) == (5, ("1",))
    assert "there is no GPU 1, there are GPU 0 (card 0)" in faults(gpu(0, 8188), told=told)[0]


def test_prompt_caches_together_take_their_part_of_the_host() -> None:
    planned = plan(gpu(0, 24564), host=100 * GIB, told=settings(cache={"max_memory_percent": 30}))

    assert [each.prompt_cache_bytes for each in planned.instances] == [10 * GIB] * 3


def test_prompt_caches_leave_the_cpu_its_share() -> None:
    planned = plan(host=32 * GIB, told=settings(cache={"max_memory_percent": 100}))

    assert [(each.memory_bytes, each.prompt_cache_bytes) for each in planned.instances] == [
        (16 * GIB, 16 * GIB)
    ]


def test_instances_on_one_device_divide_its_weight() -> None:
    planned = plan(
        gpu(0, 16376),
        gpu(1, 8188),
        told=settings({"cpu_instance": True}),
        weight_of=lambda device: 0.5 - device.index / 5,
        served=[
            serving("v", "0", gib=0.1),
            serving("both", "0", "1", gib=0.1, port=9001),
            serving("l", gib=1, port=9002, runtime=Runtime.LLAMA_SERVER),
        ],
    )

    assert {each.name: each.weight for each in planned.instances} == {
        "v": 1.25,
        "gpu0-1": 0.625,
        "gpu0-2": 0.625,
        "gpu1": 0.75,
        "l": 0.1,
        "cpu": 0.1,
        "both": 0.75,
        "gpus": 0.75,
    }


def test_gpus_that_are_equal_weigh_1_whatever_they_are() -> None:
    for weight in (0.2, 1.0, 4.8):
        planned = plan(gpu(0, 8188), gpu(1, 8188), weight_of=lambda _, weight=weight: weight)
        assert [each.weight for each in planned.instances] == [1.0, 1.0, 1.0]


def test_one_instance_tidies_the_store() -> None:
    planned = plan(gpu(0, 24564), gpu(1, 24564), served=[serving("v", "0", gib=1)])

    assert [each.name for each in planned.instances if each.prunes] == ["gpu0-1"]
    assert planned.instances[0].name == "v"
