"""The context length of each planned instance, and the model that it is chosen for."""

from typing import Any

import pytest

from balancer.provisioning.kv_cache import KnownModel
from tests.unit.plan_support import (
    GIB,
    LLAMA,
    gpu,
    plan,
    settings,
)


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


def test_a_model_of_which_only_the_size_is_known_is_taken_for_one_like_it() -> None:
    known = [KnownModel(name="small", size_bytes=GIB), KnownModel(name="large", size_bytes=30 * GIB)]

    def context(name: str) -> int | None:
        told = settings({"model": name, "several_instances": False})
        return plan(gpu(0, 40960), told=told, models=known).instances[0].context_length

    assert context("small") == 131072
    assert context("large") == 16384
