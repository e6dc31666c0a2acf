"""Dispatch where devices have no room for a load, and whom a slot that came back concerns."""

from balancer.core.ticket import InstanceId, Outcome, Ticket, TicketId, Verdict
from tests.unit.unit_support import OK, FakeClock, House, ask, house, instance, leave, settle, ticket

A, B = InstanceId("a"), InstanceId("b")


def looked_at(it: House) -> list[TicketId]:
    """For whom the scheduler is asked from now on."""
    asked: list[TicketId] = []
    decide = it.dispatcher._scheduler.decide

    def noted(each: Ticket, *args: object, **facts: object) -> object:
        asked.append(each.id)
        return decide(each, *args, **facts)  # type: ignore[arg-type]  # as it was called

    it.dispatcher._scheduler.decide = noted  # type: ignore[method-assign,assignment]  # a spy
    return asked


async def test_a_load_that_finds_no_room_is_begun_elsewhere_at_once() -> None:
    it = house(FakeClock(), instance("a", cold=True), instance("b", cold=True, weight=0.1))
    it.crowded.add(A)
    taken = await it.dispatcher.acquire(ticket("t", needs_slot=False))
    it.dispatcher.release(taken, OK)

    waits = await ask(it, ticket("u"))

    assert [where.id for where, _ in it.loads] == ["b"]
    await leave(*waits)


async def test_without_room_anywhere_it_waits_and_goes_when_memory_becomes_free() -> None:
    it = house(
        FakeClock(), instance("a", models="mn", cold=True, slots=1), instance("b", models="k", slots=1)
    )
    (other,) = await ask(it, ticket("k", model="k"))
    it.crowded.add(A)
    waits = await ask(it, ticket("t"))
    assert (it.loads, waits[0].done()) == ([], False)

    it.crowded.clear()
    it.dispatcher.release(other.result(), OK)
    await settle()

    assert [where.id for where, _ in it.loads] == ["a"]
    await leave(*waits)


async def test_a_slot_that_comes_back_concerns_those_that_want_its_model() -> None:
    it = house(FakeClock(), instance("a", models="mn", slots=1))
    m, n = await ask(it, ticket("m1"), ticket("n1", model="n"))
    waits = await ask(it, ticket("m2", arrival=2), ticket("n2", model="n", arrival=3))
    asked = looked_at(it)

    it.dispatcher.release(m.result(), OK)
    await settle()

    assert asked == ["m2"]
    assert [each.done() for each in waits] == [True, False]
    it.dispatcher.release(n.result(), OK)
    await settle()
    assert asked == ["m2", "n2"]
    await leave(*waits)


async def test_a_place_that_all_models_share_concerns_all() -> None:
    it = house(FakeClock(), instance("a", models="mn", max_concurrent_requests=1))
    (m,) = await ask(it, ticket("m1"))
    waits = await ask(it, ticket("n2", model="n", arrival=2))

    it.dispatcher.release(m.result(), OK)
    await settle()

    assert waits[0].done()
    await leave(*waits)


async def test_an_outcome_that_is_no_success_concerns_all() -> None:
    it = house(FakeClock(), instance("a", models="mn", slots=1))
    m, _ = await ask(it, ticket("m1"), ticket("n1", model="n"))
    waits = await ask(it, ticket("n2", model="n", arrival=2))
    asked = looked_at(it)

    it.dispatcher.release(m.result(), Outcome(verdict=Verdict.FAILURE, kind="crash"))
    await settle()

    assert asked == ["n2"]
    await leave(*waits)
