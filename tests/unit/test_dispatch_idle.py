"""A slot for a hedge: at once or not at all, and never one that somebody else could use."""

import pytest

from balancer.core.ticket import InstanceId, Lease, Outcome, Verdict
from tests.unit.unit_support import OK, FakeClock, House, ask, house, instance, leave, ticket

A = InstanceId("a")


def lent(it: House, model: str = "m") -> Lease | None:
    """A slot of another instance than `a`."""
    return it.dispatcher.lend_idle(ticket("t", model=model, attempt=2, excluded=frozenset({A})))


async def test_a_free_slot_where_the_model_is_resident_is_lent_and_told() -> None:
    it = house(FakeClock(7.0), instance("a"), instance("cold", cold=True), instance("b"))

    lease = lent(it)

    assert lease is not None
    assert (lease.instance, lease.leased_at, lease.ticket.excluded) == ("b", 7.0, frozenset("a"))
    assert it.fleet.get(InstanceId("b")).running == 1
    (decision,) = it.decisions
    assert decision.filtered == {"a": "asked already", "cold": "model not in memory"}
    it.dispatcher.release(lease, OK)
    assert it.dispatcher.leases == ()
    assert it.fleet.get(InstanceId("b")).running == 0


async def test_the_same_instance_is_never_lent_twice() -> None:
    assert lent(house(FakeClock(), instance("a", slots=4))) is None


async def test_nothing_is_loaded() -> None:
    it = house(FakeClock(), instance("a"), instance("b", cold=True))

    assert lent(it) is None
    assert (it.loads, it.decisions) == ([], [])


async def test_a_busy_instance_lends_nothing() -> None:
    it = house(FakeClock(), instance("a", slots=1), instance("b", slots=1))
    await ask(it, ticket("1"), ticket("2"))

    assert lent(it) is None
    assert len(it.dispatcher.leases) == 2


async def test_a_slot_that_cools_is_not_free() -> None:
    it = house(FakeClock(), instance("a", slots=1), instance("b", slots=1))
    first = lent(it)
    assert first is not None
    it.dispatcher.release(first, Outcome(verdict=Verdict.NEUTRAL, kind="cancelled", in_prefill=True))

    assert lent(it) is None


@pytest.mark.parametrize("fact", ["drained", "down"])
async def test_who_may_serve_nothing_lends_nothing(fact: str) -> None:
    it = house(FakeClock(), instance("a"), instance("b", up=fact != "down"))
    it.fleet.get(InstanceId("b")).drained = fact == "drained"

    assert lent(it) is None


async def test_nobody_who_waits_for_the_model_is_passed_by() -> None:
    clock = FakeClock()
    full = instance("b", slots=2)
    full.pause(clock.now + 1)
    it = house(clock, instance("a", slots=1), full)
    waits = await ask(it, ticket("1"), ticket("2", arrival=2))
    assert len(it.queue) == 1
    clock.advance(2)  # the pause is over, and dispatch has not looked yet

    assert lent(it) is None
    await leave(*waits)


async def test_who_waits_for_another_model_is_passed_by_but_for_a_cap_that_counts_for_all() -> None:
    both = ("m", "n")
    for cap, free in ((None, True), (4, False)):
        it = house(
            FakeClock(),
            instance("a", models=both, slots=1),
            instance("b", models=("m",), slots=1, max_concurrent_requests=cap),
        )
        waits = await ask(it, ticket("1", model="n"), ticket("2", model="n", arrival=2))
        assert len(it.queue) == 1

        assert (lent(it) is not None) == free
        await leave(*waits)


async def test_where_nobody_waits_a_cap_lends_up_to_it() -> None:
    it = house(FakeClock(), instance("a"), instance("b", slots=4, max_concurrent_requests=1))

    assert lent(it) is not None
    assert lent(it) is None


async def test_a_balancer_that_stops_lends_nothing() -> None:
    it = house(FakeClock(), instance("a"), instance("b"))
    it.dispatcher.stop()

    assert lent(it) is None


async def test_what_needs_no_model_is_not_lent() -> None:
    it = house(FakeClock(), instance("a"), instance("b"))

    assert it.dispatcher.lend_idle(ticket("t", model=None)) is None
