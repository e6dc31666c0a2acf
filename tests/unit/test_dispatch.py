"""Dispatch: who gets a slot and when, who waits, and that every slot comes back."""

import asyncio

import pytest

from balancer.core.ticket import InstanceId, Outcome, TicketId, Verdict
from balancer.errors import DeadlinePassed, NoInstance, QueueFull, Stopping, UnknownModel
from tests.unit.unit_support import OK, FakeClock, House, Wait, ask, house, instance, settle, ticket


def granted(waits: list[Wait]) -> list[bool]:
    return [each.done() and not each.cancelled() and each.exception() is None for each in waits]


async def end(it: House, *waits: Wait) -> None:
    """Nothing is left: whoever waits leaves, every lease goes back, and no slot stays counted."""
    for each in waits:
        each.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    for lease in it.dispatcher.leases:
        it.dispatcher.release(lease, OK)
    assert len(it.queue) == 0
    assert it.dispatcher._waiters == {}
    assert [0] * len(it.fleet.instances()) == [each.running for each in it.fleet.instances()]


async def test_a_free_slot_is_lent_at_once() -> None:
    it = house(FakeClock(1234.0), instance("a", slots=1))

    lease = await it.dispatcher.acquire(ticket("t"))

    assert (lease.ticket.id, lease.instance, lease.leased_at) == ("t", "a", 1234.0)
    assert it.decisions[-1].reason == lease.reason
    assert (lease,) == it.dispatcher.leases
    assert it.fleet.get(InstanceId("a")).running == 1
    await end(it)


async def test_a_model_is_served_first_come_first_served() -> None:
    it = house(FakeClock(), instance("a", slots=1))
    waits = await ask(it, *(ticket(str(number), arrival=number) for number in (3, 1, 4, 2)))
    assert granted(waits) == [True, False, False, False]

    served = [waits[0], waits[1], waits[3], waits[2]]
    for count in range(1, 5):
        assert granted(served) == [True] * count + [False] * (4 - count)
        it.dispatcher.release(served[count - 1].result(), OK)
        await settle()
    await end(it)


async def test_who_waits_is_told_apart_from_who_has_got_something() -> None:
    it = house(FakeClock(), instance("a", slots=1))
    first, second = await ask(it, ticket("1"), ticket("2"))
    assert [it.dispatcher.waits(TicketId(each)) for each in ("1", "2", "3")] == [False, True, False]

    it.dispatcher.release(first.result(), OK)

    assert not second.done()  # it has not run since, and has its lease all the same
    assert not it.dispatcher.waits(TicketId("2"))
    await settle()
    await end(it, second)


async def test_a_model_without_a_free_slot_does_not_hold_up_another() -> None:
    it = house(FakeClock(), instance("a", models=("m", "n"), slots=1))
    waits = await ask(it, ticket("1"), ticket("2"), ticket("3", model="n", arrival=3))

    assert granted(waits) == [True, False, True]
    await end(it, *waits)


async def test_slots_are_per_model_and_the_cap_is_over_all() -> None:
    it = house(FakeClock(), instance("a", models=("m", "n"), slots=2, max_concurrent_requests=3))
    waits = await ask(
        it,
        *(ticket(f"m{number}", arrival=number) for number in range(3)),
        *(ticket(f"n{number}", model="n", arrival=10 + number) for number in range(3)),
    )

    assert granted(waits) == [True, True, False, True, False, False]
    it.dispatcher.release(waits[3].result(), OK)
    await settle()
    assert granted([waits[2], *waits[4:]]) == [False, True, False]
    it.dispatcher.release(waits[0].result(), OK)
    await settle()
    assert granted([waits[2], *waits[4:]]) == [True, True, False]
    await end(it, *waits)


async def test_the_oldest_of_all_lanes_gets_a_slot_under_the_cap() -> None:
    it = house(FakeClock(), instance("a", models=("m", "n"), slots=5, max_concurrent_requests=1))
    held, young, old = await ask(
        it, ticket("held"), ticket("young", arrival=9), ticket("old", model="n", arrival=5)
    )

    it.dispatcher.release(held.result(), OK)
    await settle()

    assert granted([young, old]) == [False, True]
    await end(it, young)


async def test_a_request_is_bound_to_an_instance_only_when_a_slot_is_free() -> None:
    it = house(FakeClock(), instance("a", slots=1), instance("b", slots=1))
    first, second, waiting = await ask(it, ticket("1"), ticket("2", arrival=2), ticket("3", arrival=3))
    assert {"a", "b"} == {first.result().instance, second.result().instance}

    it.dispatcher.release(second.result(), OK)
    await settle()

    assert second.result().instance == waiting.result().instance
    await end(it)


async def test_a_retry_keeps_its_place_and_goes_elsewhere() -> None:
    it = house(FakeClock(), instance("a", slots=1), instance("b", slots=1))
    first, second, later = await ask(it, ticket("1"), ticket("2", arrival=2), ticket("3", arrival=3))
    failed = first.result()

    again = failed.ticket.excluding(failed.instance)
    retry = asyncio.create_task(it.dispatcher.acquire(again))
    await settle()
    it.dispatcher.release(second.result(), OK)
    await settle()

    assert granted([retry, later]) == [True, False]
    assert retry.result().ticket.attempt == 2
    assert retry.result().instance == second.result().instance != failed.instance
    await end(it, later)


async def test_a_request_that_every_instance_failed_is_told_so() -> None:
    it = house(FakeClock(), instance("a"))

    with pytest.raises(NoInstance, match="failed it"):
        await it.dispatcher.acquire(ticket().excluding(InstanceId("a")))
    await end(it)


async def test_no_usable_instance_and_no_such_model_are_told_apart() -> None:
    clock = FakeClock()
    with pytest.raises(UnknownModel, match="'ghost:latest' not found"):
        await house(clock, instance("a")).dispatcher.acquire(ticket(model="ghost"))
    for it in (
        house(clock, instance("a", up=False)),
        house(clock, instance("a", up=False, models=None)),
        house(clock),
    ):
        with pytest.raises(NoInstance, match="'m:latest' is usable") as caught:
            await it.dispatcher.acquire(ticket())
        assert caught.value.retry_after_seconds == 1.0


async def test_who_finds_the_queue_full_is_turned_away_at_once() -> None:
    it = house(FakeClock(), instance("a", models=("m", "n"), slots=1), limit=1)
    waits = await ask(it, ticket("1"), ticket("2"))

    with pytest.raises(QueueFull, match="1 requests wait") as caught:
        await it.dispatcher.acquire(ticket("3"))

    assert caught.value.retry_after_seconds is not None
    assert len(it.queue) == 1
    assert (await it.dispatcher.acquire(ticket("4", model="n"))).ticket.variant.model == "n:latest"  # type: ignore[union-attr]
    await end(it, *waits)


async def test_a_queue_of_none_serves_who_need_not_wait() -> None:
    it = house(FakeClock(), instance("a", slots=1), limit=0)

    await it.dispatcher.acquire(ticket("1"))

    with pytest.raises(QueueFull):
        await it.dispatcher.acquire(ticket("2"))
    await end(it)


async def test_a_retry_is_not_turned_away_by_a_full_queue() -> None:
    it = house(FakeClock(), instance("a", slots=1), limit=0)
    await it.dispatcher.acquire(ticket("1"))

    (retry,) = await ask(it, ticket("2").excluding(InstanceId("z")))

    assert not retry.done()
    it.dispatcher.release(it.dispatcher.leases[0], OK)
    await settle()
    assert granted([retry]) == [True]
    await end(it)


async def test_who_leaves_the_queue_leaves_nothing_behind() -> None:
    it = house(FakeClock(), instance("a", slots=1))
    held, leaver, next_one = await ask(it, ticket("1"), ticket("2", arrival=2), ticket("3", arrival=3))

    leaver.cancel()
    await settle()
    assert len(it.queue) == 1
    it.dispatcher.release(held.result(), OK)
    await settle()

    assert leaver.cancelled()
    assert granted([next_one]) == [True]
    await end(it)


async def test_who_leaves_at_the_moment_of_granting_gives_the_slot_to_the_next() -> None:
    it = house(FakeClock(), instance("a", slots=1))
    held, leaver, next_one = await ask(it, ticket("1"), ticket("2", arrival=2), ticket("3", arrival=3))

    it.dispatcher.release(held.result(), OK)  # lends the slot to the leaver, which has not run since
    leaver.cancel()
    await settle()

    assert leaver.cancelled()
    assert granted([next_one]) == [True]
    assert len(it.dispatcher.leases) == 1
    await end(it)


async def test_who_left_before_the_slot_is_free_takes_no_turn() -> None:
    it = house(FakeClock(), instance("a", slots=1))
    held, leaver = await ask(it, ticket("1"), ticket("2", arrival=2))
    decide = it.dispatcher._scheduler.decide
    decided: list[str] = []
    it.dispatcher._scheduler.decide = lambda each, now: decided.append(each.id) or decide(each, now)  # type: ignore[func-returns-value,method-assign]

    leaver.cancel()  # its wait is over, but it has not run since
    it.dispatcher.release(held.result(), OK)

    assert (decided, it.dispatcher.leases) == ([], ())
    await end(it, leaver)


async def test_an_error_at_the_moment_of_leaving_is_nobodys_loss() -> None:
    a = instance("a", slots=1)
    it = house(FakeClock(), a)
    held, leaver = await ask(it, ticket("1"), ticket("2", arrival=2))

    it.fleet.drain(a, drained=True)  # answers the leaver with an error
    leaver.cancel()
    await settle()

    assert leaver.cancelled()
    await end(it, held)


async def test_a_lease_is_released_once() -> None:
    it = house(FakeClock(), instance("a", slots=2))
    lease = await it.dispatcher.acquire(ticket("1"))
    await it.dispatcher.acquire(ticket("2"))
    it.dispatcher.release(lease, OK)

    with pytest.raises(KeyError):
        it.dispatcher.release(lease, OK)

    assert it.fleet.get(InstanceId("a")).running == 1
    await end(it)


@pytest.mark.parametrize("verdict", list(Verdict))
async def test_a_slot_comes_back_whatever_the_outcome(verdict: Verdict) -> None:
    it = house(FakeClock(), instance("a", slots=1))
    lease = await it.dispatcher.acquire(ticket())

    it.dispatcher.release(lease, Outcome(verdict=verdict, kind="x"))

    await end(it)


async def test_what_needs_no_slot_takes_none() -> None:
    it = house(FakeClock(), instance("a", slots=1, max_concurrent_requests=1))
    for number in range(3):
        await it.dispatcher.acquire(ticket(f"s{number}", needs_slot=False))
        await it.dispatcher.acquire(ticket(f"n{number}", model=None))

    assert (len(it.dispatcher.leases), it.fleet.get(InstanceId("a")).running) == (6, 0)
    await end(it)


async def test_a_change_of_the_fleet_lets_the_waiting_go() -> None:
    a, b = instance("a", slots=1), instance("b", up=False)
    it = house(FakeClock(), a, b)
    waits = await ask(it, ticket("1"), ticket("2", arrival=2), ticket("3", arrival=3))

    it.fleet.probe_succeeded(b, version="1", incarnation=b.incarnation)
    await settle()
    assert granted(waits) == [True, True, False]
    it.fleet.inventory_read(b, models=None, runners=[{"name": "m", "digest": "d"}], slots={"d": 2}, at=1.0)
    await settle()
    assert granted(waits) == [True, True, True]
    assert [each.result().instance for each in waits] == ["a", "b", "b"]
    await end(it)


async def test_every_slot_that_becomes_free_at_once_is_lent_at_once() -> None:
    a, b = instance("a", slots=1), instance("b", up=False, slots=3)
    it = house(FakeClock(), a, b)
    waits = await ask(it, *(ticket(str(number), arrival=number) for number in range(6)))

    it.fleet.probe_succeeded(b, version="1", incarnation=b.incarnation)
    await settle()

    assert granted(waits) == [True] * 4 + [False] * 2
    await end(it, *waits)


async def test_a_drained_instance_gets_no_new_lease_and_keeps_its_own() -> None:
    a, b = instance("a", slots=1), instance("b", slots=1)
    it = house(FakeClock(), a, b)
    held = await it.dispatcher.acquire(ticket("1", excluded=frozenset({InstanceId("b")})))

    it.fleet.drain(a, drained=True)
    it.dispatcher.release(held, OK)
    waits = await ask(it, ticket("2"), ticket("3", arrival=3))
    assert [(each.result().instance if each.done() else None, each.done()) for each in waits] == [
        ("b", True),
        (None, False),
    ]

    it.fleet.drain(a, drained=False)
    await settle()
    assert waits[1].result().instance == "a"
    await end(it)


async def test_who_waits_only_for_an_instance_that_goes_down_is_told_at_once() -> None:
    a = instance("a", slots=1)
    it = house(FakeClock(), a)
    held, waiting = await ask(it, ticket("1"), ticket("2", arrival=2))

    it.fleet.failed(a, "refused", refused=True, incarnation=a.incarnation)
    await settle()

    assert isinstance(waiting.exception(), NoInstance)
    await end(it, held)


async def test_a_lease_names_the_lives_that_it_belongs_to() -> None:
    a = instance("a", slots=1, cold=True)
    a.read_inventory(models=None, runners=[{"name": "m", "digest": "1"}], slots={}, at=1.0)
    a.read_inventory(models=None, runners=[{"name": "m", "digest": "2"}], slots={}, at=2.0)
    a.incarnation = 7
    it = house(FakeClock(), a)

    lease = await it.dispatcher.acquire(ticket())

    assert (lease.incarnation, lease.generation) == (7, 2)
    await end(it)


async def test_a_deadline_that_has_come_ends_the_wait() -> None:
    clock = FakeClock(2000.0)
    it = house(clock, instance("a", slots=1))
    first = await it.dispatcher.acquire(ticket("first"))

    with pytest.raises(DeadlinePassed, match=r"in 5\.0 s") as caught:
        await it.dispatcher.acquire(ticket(queued_at=1995.0, deadline=2000.0))

    assert caught.value.retry_after_seconds is not None
    it.dispatcher.release(first, OK)
    await end(it)


async def test_a_free_slot_is_lent_however_short_the_wait_may_be() -> None:
    it = house(FakeClock(2000.0), instance("a"))

    lease = await it.dispatcher.acquire(ticket(queued_at=2000.0, deadline=2000.0))

    assert lease.instance == "a"
    it.dispatcher.release(lease, OK)
    await end(it)


async def test_a_dispatcher_that_stops_lends_no_more() -> None:
    it = house(FakeClock(), instance("a", slots=1))
    running = await it.dispatcher.acquire(ticket("running"))
    (queued,) = await ask(it, ticket("queued"))

    it.dispatcher.stop()

    for waiting in (queued, it.dispatcher.acquire(ticket("late"))):
        with pytest.raises(Stopping):
            await waiting
    it.dispatcher.release(running, OK)
    await end(it)


async def test_one_turn_of_the_loop_scores_a_bounded_number_of_pairs_and_nobody_is_forgotten() -> None:
    models = [f"m{number}" for number in range(40)]
    it = house(FakeClock(), *(instance(f"i{number}", models=models, slots=1) for number in range(20)))
    _, *others = it.fleet.instances()
    for each in others:
        it.fleet.drain(each, drained=True)
    held = [await it.dispatcher.acquire(ticket(model=model)) for model in models]
    waits = await ask(
        it, *(ticket(model, model=model, arrival=number) for number, model in enumerate(models))
    )
    for each in others[1:]:
        each.drained = False  # without telling, so that what follows happens in one turn

    it.fleet.drain(others[0], drained=False)
    # Each that goes is scored with the 19 others.
    assert len(it.dispatcher.leases) - len(held) == 14
    await settle()

    assert all(each.done() for each in waits)
    for lease in it.dispatcher.leases:
        it.dispatcher.release(lease, OK)
