"""What an instance has: models, runners and their lives, slots, and whose store it is."""

import itertools
from dataclasses import replace

import pytest

from balancer.core.names import canonical_name
from balancer.core.plan import Runtime
from balancer.core.ticket import InstanceId
from balancer.core.variant import Variant
from balancer.fleet.breaker import BreakerPolicy, Breakers
from balancer.fleet.fleet import Fleet
from balancer.fleet.health import Health, HealthPolicy
from balancer.fleet.instance import Instance
from balancer.fleet.instance_spec import InstanceSpec
from balancer.fleet.stores import learn_shared_stores
from tests.unit.unit_support import instance

M, N = canonical_name("m"), canonical_name("n")


def runner(name: str = "m", digest: str = "1") -> dict[str, object]:
    return {"name": name, "digest": digest}


@pytest.mark.parametrize(
    ("spare_bytes", "size", "takes"),
    [(None, 99, True), (10, 10, True), (10, 11, False), (10, None, False), (10, "x", False)],
)
def test_a_spare_instance_takes_small_models(spare_bytes: int | None, size: object, takes: bool) -> None:
    it = instance("a")
    it.spec = replace(it.spec, spare_bytes=spare_bytes)
    row = {"name": "m", "size": size}
    it.read_inventory(models=[row], runners=[], slots={}, at=1.0)

    assert it.spare is (spare_bytes is not None)
    assert it.small_enough(M) is takes


def read(
    it: Instance,
    *,
    models: list[str] | None = None,
    runners: list[dict[str, object]] | None = None,
    **slots: int,
) -> None:
    rows = None if models is None else [{"name": name} for name in models]
    it.read_inventory(models=rows, runners=runners, slots=slots, at=5.0)


def test_names_are_held_in_any_spelling() -> None:
    a = instance("a", models=("Library/M:LATEST",))

    assert a.holds(M)
    assert not a.holds(N)


def test_a_cloud_model_is_held_by_any_instance_that_has_lists() -> None:
    assert instance("a", models=()).holds(canonical_name("gpt-oss:120b-cloud"))


def test_an_instance_without_lists_is_believed_to_hold_a_model_while_it_answers() -> None:
    assert instance("a", models=None).holds(M)
    assert not instance("a", models=None, up=False).holds(M)


def test_no_list_of_models_leaves_the_inventory_unknown() -> None:
    a = instance("a", models=None)

    read(a, runners=[runner()])

    assert a.inventory is None


def test_a_list_that_could_not_be_read_stays_as_it_was() -> None:
    a = instance("a", models=("m",))
    read(a, runners=[runner()])
    read(a, models=["n"])
    assert (a.holds(N), a.holds(M), a.resident(M)) == (True, False, True)

    read(a, runners=[])
    assert (a.holds(N), a.resident(M)) == (True, False)


def test_an_empty_list_is_no_missing_list() -> None:
    a = instance("a", models=("m",))

    read(a, models=[])

    assert not a.holds(M)


def test_a_runner_that_stays_keeps_its_life() -> None:
    a = instance("a")
    lives = []
    for _ in range(3):
        read(a, runners=[runner("m", "1"), runner("n", "2")])
        lives.append((a.generation_of(M), a.generation_of(N)))

    assert len(set(lives)) == 1
    assert lives[0][0] != lives[0][1]


@pytest.mark.parametrize("between", [[], [runner("m", "other")]])
def test_a_runner_that_was_gone_or_replaced_begins_a_new_life(between: list[dict[str, object]]) -> None:
    a = instance("a")
    read(a, runners=[runner()])
    first = a.generation_of(M)
    read(a, runners=between)
    read(a, runners=[runner()])

    assert a.generation_of(M) > first


def test_a_runner_that_went_down_with_its_instance_begins_a_new_life() -> None:
    a = instance("a", thresholds=(1, 1))
    read(a, runners=[runner()])
    first = a.generation_of(M)
    Fleet([a]).failed(a, "x", refused=True, incarnation=a.incarnation)
    assert a.generation_of(M) == 0
    read(a, runners=[runner()])

    assert a.generation_of(M) > first


def test_what_is_not_resident_has_no_life() -> None:
    assert 0 == instance("a", cold=True).generation_of(M) == instance("a", models=None).generation_of(M)
    assert instance("a").generation_of(None) == 0


@pytest.mark.parametrize(
    ("spec", "learned", "slots"),
    [
        ({"slots": 4, "max_concurrent_requests": 2}, 8, 4),
        ({"max_concurrent_requests": 2}, 8, 2),
        ({}, 8, 8),
        ({}, None, 1),
        ({"slots": 4}, None, 4),
    ],
)
def test_slots_are_configured_else_learned_else_one(
    spec: dict[str, int], learned: int | None, slots: int
) -> None:
    a = instance("a", **spec)
    read(a, runners=[runner()], **({"1": learned} if learned else {}))

    assert slots == a.slots(Variant(M))
    assert slots == a.slots(Variant(M, (("num_ctx", 1),)))


def test_slots_once_learned_stay_while_the_runner_stays() -> None:
    a = instance("a")
    read(a, runners=[runner()], **{"1": 4})
    read(a, runners=[runner()])
    assert a.slots(Variant(M)) == 4

    read(a, runners=[runner(digest="2")])
    assert a.slots(Variant(M)) == 1


def test_a_slot_is_free_within_runner_and_cap() -> None:
    a = instance("a", models=("m", "n"), slots=2, max_concurrent_requests=3)
    m, n = Variant(M), Variant(N)
    a.take_slot(M, 0.0)
    assert a.has_free_slot(m)
    a.take_slot(M, 0.0)
    assert (a.has_free_slot(m), a.has_free_slot(n)) == (False, True)
    a.take_slot(N, 0.0)
    assert (a.has_free_slot(m), a.has_free_slot(n)) == (False, False)
    a.give_slot_back(M, 0.0, 0.0)
    assert (a.has_free_slot(m), a.has_free_slot(n)) == (True, True)
    assert (a.running, a.running_of(M), a.running_of(N)) == (2, 1, 1)


def test_a_slot_cannot_come_back_twice() -> None:
    a = instance("a")
    a.take_slot(M, 0.0)
    a.take_slot(N, 0.0)
    a.give_slot_back(M, 0.0, 0.0)

    with pytest.raises(AssertionError, match="twice"):
        a.give_slot_back(M, 0.0, 0.0)
    assert a.running == 1


def test_models_reserved_for_others_are_told_by_canonical_name() -> None:
    assert instance("a").meant_for(M)
    spec = InstanceSpec(id=InstanceId("a"), url="http://a:1", models=frozenset({M}))
    reserved = Instance(spec, Health(HealthPolicy()), Breakers(BreakerPolicy()))
    assert (reserved.meant_for(M), reserved.meant_for(N)) == (True, False)


STAMP = "2026-01-01T00:00:00.123456789Z"


def stored(name: str, *rows: tuple[str, str, str], **spec: object) -> Instance:
    it = instance(name, models=None, **spec)
    it.read_inventory(
        models=[{"name": n, "digest": d, "modified_at": at} for n, d, at in rows],
        runners=[],
        slots={},
        at=1.0,
    )
    return it


def test_instances_that_list_the_same_file_share_a_store() -> None:
    row = ("m", "1", STAMP)
    a, b, c = stored("a", row), stored("b", ("x", "9", STAMP), row), stored("c", ("y", "8", STAMP))

    learn_shared_stores([a, b, c])

    assert a.store == b.store
    assert c.store not in {a.store, b.store}


@pytest.mark.parametrize(
    "other",
    [
        ("m", "2", STAMP),
        ("n", "1", STAMP),
        ("m", "1", STAMP.replace("9Z", "8Z")),
        ("m", "1", "2026-01-01T00:00:00Z"),
    ],
)
def test_stores_filled_apart_stay_apart(other: tuple[str, str, str]) -> None:
    a, b = stored("a", ("m", "1", STAMP)), stored("b", other)

    learn_shared_stores([a, b])

    assert a.store != b.store


def test_a_time_without_a_fraction_proves_nothing() -> None:
    row = ("m", "1", "2026-01-01T00:00:00Z")
    a, b = stored("a", row), stored("b", row)

    learn_shared_stores([a, b])

    assert a.store != b.store


def test_a_store_once_learned_stands_when_a_list_is_empty() -> None:
    row = ("m", "1", STAMP)
    a, b = stored("a", row), stored("b", row)
    learn_shared_stores([a, b])
    b.read_inventory(models=[], runners=[], slots={}, at=2.0)
    learn_shared_stores([a, b])

    assert a.store == b.store


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_known_directory_names_the_store_whatever_the_order(order: tuple[int, ...]) -> None:
    row = ("m", "1", STAMP)
    trio = [stored("a", row), stored("b", row), stored("c", row)]
    trio[1].learned_store = "directory:/models"

    learn_shared_stores([trio[index] for index in order])

    assert {"directory:/models"} == {each.store for each in trio}


def test_a_directory_that_becomes_known_later_is_shared_all_the_same() -> None:
    row = ("m", "1", STAMP)
    a, b = stored("a", row), stored("b", row)
    learn_shared_stores([a, b])
    a.learned_store = "directory:/models"
    learn_shared_stores([a, b])

    assert "directory:/models" == a.store == b.store


def test_a_configured_store_is_never_overruled() -> None:
    row = ("m", "1", STAMP)
    a, b = stored("a", row, store="mine"), stored("b", row, store="yours")

    learn_shared_stores([a, b])

    assert (a.store, b.store) == ("mine", "yours")


def test_reading_an_inventory_is_told_and_learns_stores() -> None:
    row = {"name": "m", "digest": "1", "modified_at": STAMP}
    a, b = instance("a", models=None), instance("b", models=None)
    fleet = Fleet([a, b])
    changes: list[str] = []
    fleet.listen(on_change=lambda each: changes.append(str(each.id)))

    for each in (a, b):
        fleet.inventory_read(each, models=[row], runners=[], slots={}, at=3.0)

    assert changes == ["a", "b"]
    assert a.store == b.store


def test_another_runtime_has_its_models_in_memory_whatever_is_asked_of_it() -> None:
    a = instance("a", cold=True, runtime=Runtime.VLLM)
    read(a, models=["m"], runners=[runner()])

    assert a.warm(Variant(M, (("num_ctx", 8),)))
    a.forget_runner(M, 10.0)
    assert a.resident(M)
    assert not a.holds(canonical_name("big:cloud"))
    assert instance("b").holds(canonical_name("big:cloud"))


def test_another_runtime_serves_what_it_has_a_path_for() -> None:
    for runtime in (Runtime.VLLM, Runtime.LLAMA_SERVER):
        other = instance("a", runtime=runtime)

        assert all(
            map(other.serves, ("/api/chat", "/api/generate", "/api/embed", "/api/show", "/v1/messages"))
        )
        assert not any(map(other.serves, ("/api/embeddings", "/api/push", "/api/status", "/api/pull", "")))
    assert all(map(instance("b").serves, ("/api/embeddings", "/api/push", "/api/status", "")))
