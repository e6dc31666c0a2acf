"""The plan of a machine beside the models of vLLM and llama-server."""

from balancer.core.plan import Runtime
from tests.unit.plan_support import GIB, by_name, faults, gpu, names, plan, serving, settings


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
        ("v", 16 * GIB, ("0", "1")),
        ("gpu0", 10 * GIB, ("0",)),
        ("gpu1", 2 * GIB, ("1",)),
        ("gpus", 0, ("0", "1")),
    ]


def test_served_models_start_in_their_order_wherever_they_are_and_before_every_ollama() -> None:
    """vLLM counts as its own what another takes while it measures."""
    where = (("0", "1"), ("1",), (), ("0",), ("0", "1"))
    served = [
        serving(name, *keys, gib=1, port=9000 + at)
        for at, (name, keys) in enumerate(zip("edcba", where, strict=True))
    ]

    planned = plan(gpu(0, 24576), gpu(1, 24576), served=served)

    assert [each.name for each in planned.instances][:5] == list("edcba")
    assert {each.runtime for each in planned.instances[5:]} == {Runtime.OLLAMA}


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
