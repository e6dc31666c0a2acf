"""The plan of a machine: tiers, overrides, shares, names, ports, contexts and what instances share."""

from typing import Any

import pytest

from balancer.core.device import Device
from balancer.core.plan import Plan, PlannedInstance, Runtime
from balancer.provisioning.kv_cache import CacheShape, KnownModel
from balancer.provisioning.plan import make_plan
from balancer.provisioning.tiers import tier_of
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


def test_the_context_is_the_largest_that_fits_beside_the_model() -> None:
    model = KnownModel(name="llama3.1:8b", size_bytes=5 * GIB, cache=LLAMA, trained_context=131072)
    told = settings({"model": "llama3.1:8b", "instances_per_device": 1, "memory_reserve_bytes": 0})

    def context(gib: float, **others: Any) -> int | None:
        return plan(gpu(0, int(gib * 1024)), told=told, models=[model], **others).instances[0].context_length

    assert context(6) == 4096
    assert context(6.49) == 4096
    assert context(6.5) == 8192
    assert context(9.49) == 16384
    assert context(9.5) == 32768
    assert context(80) == 131072
    assert context(6.5, kv_cache_type="q4_0") == 16384


def test_slots_take_a_cache_each() -> None:
    model = KnownModel(name="m", size_bytes=5 * GIB, cache=LLAMA, trained_context=131072)
    told = settings({"model": "m", "slots": 4, "instances_per_device": 1, "memory_reserve_bytes": 0})

    (only,) = plan(gpu(0, 13 * 1024), told=told, models=[model]).instances

    assert (only.slots, only.context_length) == (4, 8192)
    assert "4.0 GiB of KV cache for 4 slots beside m (5.0 GiB)" in only.reason


@pytest.mark.parametrize(("trained", "expected"), [(2048, 2048), (40960, 40960), (2**20, 262144)])
def test_the_context_is_capped_by_what_the_model_is_trained_for(trained: int, expected: int) -> None:
    model = KnownModel(name="m", size_bytes=GIB, cache=LLAMA, trained_context=trained)

    (only,) = plan(
        gpu(0, 81559), told=settings({"model": "m", "several_instances": False}), models=[model]
    ).instances

    assert only.context_length == expected
    assert ("all that it is trained for" in only.reason) == (trained < 2**20)


def test_where_nothing_fits_the_least_context_is_set_and_told() -> None:
    model = KnownModel(name="m:70b", size_bytes=40 * GIB, cache=LLAMA, trained_context=131072)

    planned = plan(gpu(0, 8192), told=settings({"model": "m:70b"}), models=[model])

    assert planned.instances[0].context_length == 4096
    assert (
        "context 4096, the least: 0.5 GiB of KV cache and m:70b (40.0 GiB) do not fit"
        in planned.instances[0].reason
    )


def test_the_largest_model_meant_for_an_instance_is_planned_for() -> None:
    known = [
        KnownModel(name="small:latest", size_bytes=2 * GIB, cache=LLAMA, trained_context=131072),
        KnownModel(name="large:latest", size_bytes=5 * GIB, cache=LLAMA, trained_context=131072),
        KnownModel(name="other:latest", size_bytes=20 * GIB, cache=LLAMA, trained_context=131072),
    ]
    items = [{"gpu_id": 0, "port": 1, "models": ["small", "LARGE"]}]

    (own,) = plan(gpu(0, 24576), told=settings(gpu_instances=items), models=known).instances

    assert "beside large:latest (5.0 GiB)" in own.reason


@pytest.mark.parametrize(
    ("provisioning", "told"),
    [
        ({}, "beside an assumed 8B model (4.6 GiB)"),
        ({"model": "none:7b"}, "beside an assumed 8B model in place of none:7b (4.6 GiB)"),
        ({"model_size_estimate_bytes": "3GiB"}, "beside an assumed model (3.0 GiB)"),
    ],
)
def test_an_unknown_model_is_assumed(provisioning: dict[str, Any], told: str) -> None:
    assert told in plan(gpu(0, 24564), told=settings(provisioning)).instances[0].reason


def test_a_large_assumed_model_has_the_cache_of_a_large_one() -> None:
    told = settings({"model_size_estimate_bytes": "60GiB"})

    (only,) = plan(gpu(0, 80 * 1024), told=told).instances

    assert "context 32768: 10.0 GiB of KV cache beside an assumed model (60.0 GiB)" in only.reason


def test_the_spanning_instance_is_planned_for_a_model_that_needs_it() -> None:
    known = [
        KnownModel(name="fits:latest", size_bytes=20 * GIB, cache=LLAMA, trained_context=131072),
        KnownModel(name="large:latest", size_bytes=30 * GIB, cache=LLAMA, trained_context=131072),
    ]
    cards = (gpu(0, 24576), gpu(1, 24576))

    assert "beside large:latest (30.0 GiB)" in plan(*cards, models=known).spanning[0].reason
    assert "beside an assumed 70B model (39.6 GiB)" in plan(*cards, models=known[:1]).spanning[0].reason


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


def test_a_served_model_stays_as_it_is_and_ollama_gets_the_rest() -> None:
    served = serving("v", "1", gib=12, slots=8, context_length=8192)

    planned = plan(gpu(0, 8188), gpu(1, 24576), served=[served])

    assert by_name(planned, "v") == served
    assert [each.name for each in planned.devices[1].instances] == ["v", "gpu1"]
    assert by_name(planned, "gpu1").memory_bytes == 10 * GIB


def test_served_models_are_planned_first_in_their_order() -> None:
    served = [serving(name, "0", gib=1, port=9000 + at) for at, name in enumerate("cab")]

    planned = plan(gpu(0, 12288), served=served)

    assert [(each.name, each.memory_bytes) for each in planned.instances] == [
        *[(name, GIB) for name in "cab"],
        ("gpu0", 7 * GIB),
    ]


def test_a_served_model_on_several_gpus_takes_the_same_share_of_each() -> None:
    planned = plan(gpu(0, 24576), gpu(1, 8192), served=[serving("v", "0", "1", gib=16)])

    assert [(each.name, each.memory_bytes, each.devices) for each in planned.instances] == [
        ("gpu0", 10 * GIB, ("0",)),
        ("gpu1", 2 * GIB, ("1",)),
        ("v", 16 * GIB, ("0", "1")),
        ("gpus", 0, ("0", "1")),
    ]


def test_a_gpu_that_a_served_model_fills_gets_no_ollama() -> None:
    planned = plan(gpu(0, 24576), served=[serving("v", "0", gib=23.5)])

    assert names(planned) == ["v"]
    assert "has no Ollama" in planned.notes[0]


def test_names_and_ports_of_served_models_are_passed_over() -> None:
    served = [serving("gpu0", "0", gib=1, port=11500), serving("gpu0-2", "0", gib=2, port=11502)]

    planned = plan(gpu(0, 8188), gpu(1, 8188), served=served)

    assert {each.name: each.port for each in planned.instances} == {
        "gpu0": 11500,
        "gpu0-2": 11502,
        "gpu0-3": 11501,
        "gpu1": 11503,
        "gpus": 11504,
    }


def test_served_models_on_the_cpu_take_of_the_hosts_memory() -> None:
    served = serving("l", gib=40, runtime=Runtime.LLAMA_SERVER)

    planned = plan(served=[served], told=settings(cache={"max_memory_percent": 100}))

    assert [(each.name, each.memory_bytes) for each in planned.devices[0].instances] == [
        ("l", 40 * GIB),
        ("cpu", 24 * GIB),
    ]
    assert [each.prompt_cache_bytes for each in planned.instances] == [0, 0]


def test_prompt_caches_are_of_those_that_keep_one_in_the_hosts_memory() -> None:
    served = [
        serving("v", "0", gib=1),
        serving("l", "0", gib=1, port=9001, runtime=Runtime.LLAMA_SERVER),
    ]

    planned = plan(gpu(0, 8188), served=served, host=100 * GIB)

    assert [each.prompt_cache_bytes for each in planned.instances] == [0, 15 * GIB, 15 * GIB]


def test_gpu_instances_are_held_to_what_served_models_leave() -> None:
    item = {"gpu_id": 0, "port": 1, "name": "a", "memory_limit": "5GiB"}
    told = settings(gpu_instances=[item])

    assert faults(gpu(0, 8192), told=told, served=[serving("v", "0", gib=4)]) == [
        "this machine: gpu_instances: 'a' want 5.0 GiB of GPU 0 (card 0), where 4.0 GiB are to be had, "
        "limits that fit together"
    ]
    assert names(plan(gpu(0, 8192), told=told, served=[serving("v", "0", gib=3)])) == ["v", "a"]


def test_a_port_of_gpu_instances_that_a_served_model_has_is_told() -> None:
    told = settings(gpu_instances=[{"gpu_id": 0, "port": 9000, "name": "a"}])

    assert faults(gpu(0, 8192), told=told, served=[serving("v", "0", gib=3)]) == [
        "this machine: port: 'a' and 'v' both want 9000, a port each"
    ]


def test_a_model_of_which_only_the_size_is_known_is_taken_for_one_like_it() -> None:
    known = [KnownModel(name="small", size_bytes=GIB), KnownModel(name="large", size_bytes=30 * GIB)]

    def context(name: str) -> int | None:
        told = settings({"model": name, "several_instances": False})
        return plan(gpu(0, 40960), told=told, models=known).instances[0].context_length

    assert context("small") == 131072
    assert context("large") == 16384
