"""What is remembered of loads that found no room, and which news of an instance wake the waiting."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from balancer.core.names import canonical_name
from balancer.core.ticket import InstanceId, Lease, Outcome, Verdict
from balancer.core.variant import Variant
from balancer.fleet.fleet import Fleet
from balancer.fleet.instance import Instance
from tests.unit.unit_support import FakeClock, instance, ticket

M, N = (Variant(canonical_name(each)) for each in "mn")
ROW: dict[str, Any] = {"name": "m", "digest": "d", "size_vram": 1, "expires_at": "1"}


def siblings() -> tuple[Instance, Instance]:
    return instance("a", models="mn", cold=True), instance("b", models="mn")


def gives_a_lease_back(it: Instance) -> None:
    it.give_slot_back(M.model, 0.0, 1.0)


def ends_a_load(it: Instance) -> None:
    it.load_began(M, 0.0, 9.0)
    it.load_ended(M, Outcome(verdict=Verdict.SUCCESS, kind="ok"), began_at=0.0, now=1.0, current=True)


def unloads(it: Instance) -> None:
    it.forget_runner(M.model, 1.0)


def ends(it: Instance) -> None:
    it.forget_runners()


def lists_less(it: Instance) -> None:
    it.read_inventory(models=None, runners=[], slots={}, at=1.0)


@pytest.mark.parametrize("happens", [gives_a_lease_back, ends_a_load, unloads, ends, lists_less])
def test_a_load_without_room_is_not_tried_until_memory_may_have_become_free(
    happens: Callable[[Instance], None],
) -> None:
    a, b = siblings()
    b.take_slot(M.model, 0.0)
    a.no_room.meet(M, (a, b), 0.0)
    assert a.no_room_until(M, 9.9) == 10.0

    happens(b)

    assert a.no_room_until(M, 9.9) is None


def test_one_of_two_leases_of_a_model_keeps_its_memory() -> None:
    a, b = siblings()
    b.take_slot(M.model, 0.0)
    b.take_slot(M.model, 0.5)
    a.no_room.meet(M, (a, b), 0.0)

    b.give_slot_back(M.model, 0.0, 1.0)

    assert a.no_room_until(M, 1.0) == 10.0


def test_what_nobody_sees_is_tried_after_a_while_and_other_variants_at_once() -> None:
    a, b = siblings()
    a.no_room.meet(M, (a, b), 0.0)

    assert (a.no_room_until(N, 0.0), b.no_room_until(M, 0.0)) == (None, None)
    assert a.no_room_until(M, 10.0) is None


def test_a_load_that_has_begun_and_found_no_room_makes_none() -> None:
    a, b = siblings()
    a.load_began(M, 0.0, 9.0)
    a.no_room.meet(M, (a, b), 0.0)

    a.load_ended(M, Outcome(verdict=Verdict.NEUTRAL, kind="no_room"), began_at=0.0, now=0.0, current=True)

    assert a.no_room_until(M, 1.0) == 10.0


@pytest.mark.parametrize(
    ("models", "runners", "told"),
    [
        (None, None, False),
        (None, [ROW], False),
        (None, [{**ROW, "expires_at": "2"}], False),
        ([{"name": "m"}], [ROW], False),
        (None, [{**ROW, "size_vram": 2}], True),
        (None, [{**ROW, "digest": "e"}], True),
        (None, [], True),
        (None, [ROW, {"name": "n"}], True),
        ([{"name": "m"}, {"name": "n"}], None, True),
        ([{"name": "m", "digest": "e"}], None, True),
    ],
)
def test_the_waiting_hear_of_lists_that_tell_anything_new(
    models: Sequence[Any] | None, runners: Sequence[Any] | None, told: bool
) -> None:
    it = instance("a", cold=True)
    fleet = Fleet([it], clock=FakeClock())
    fleet.inventory_read(it, models=None, runners=[ROW], slots={}, at=1.0)
    heard: list[InstanceId] = []
    fleet.listen(on_change=lambda each: heard.append(each.id))

    fleet.inventory_read(it, models=models, runners=runners, slots={}, at=2.0)

    assert bool(heard) == told


def test_the_waiting_hear_of_a_list_that_ends_a_doubt() -> None:
    it = instance("a", models="mn")
    fleet = Fleet([it], clock=FakeClock())
    it.load_began(N, 0.0, 9.0)
    it.read_inventory(models=None, runners=[ROW, {"name": "n"}], slots={}, at=0.1)
    assert not it.warm(M)
    heard: list[InstanceId] = []
    fleet.listen(on_change=lambda each: heard.append(each.id))

    fleet.inventory_read(it, models=None, runners=[ROW, {"name": "n"}], slots={}, at=1.0)

    assert it.warm(M)
    assert heard == ["a"]


def test_what_is_in_memory_is_spared_for_a_while_after_its_last_answer() -> None:
    never = float("-inf")
    cold, it = instance("a", cold=True), instance("b")
    assert (cold.spared_until(5.0), it.spared_until(5.0)) == (never, never)

    it.take_slot(M.model, 5.0)
    assert it.spared_until(100.0) == 160.0
    lease = Lease(
        id=1,
        ticket=ticket(),
        instance=it.id,
        url="http://b",
        incarnation=0,
        generation=0,
        reason="",
        leased_at=5.0,
    )
    it.give_slot_back(M.model, 5.0, 7.0)
    it.settle(lease, Outcome(verdict=Verdict.SUCCESS, kind="ok"), 7.0)

    assert it.spared_until(100.0) == 67.0


def test_what_is_not_believed_any_more_is_forgotten_though_nobody_asks_for_it_again() -> None:
    a, b = siblings()
    for size in range(100):
        a.no_room.meet(Variant(M.model, (("num_ctx", size),)), (a, b), float(size))

    assert [dict(each.options)["num_ctx"] for each in a.no_room.met] == list(range(90, 100))
