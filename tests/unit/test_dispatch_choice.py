"""Dispatch with a strategy that may rather wait: who waits by choice holds up nobody and is woken in time."""

import asyncio
from collections.abc import Sequence

from balancer.core.decision import Wait
from balancer.core.scores import Asked, Candidate, Scores, told
from balancer.core.ticket import InstanceId, Ticket
from balancer.core.views import InstanceView
from balancer.scheduling.strategies import Reckoning, Scored
from tests.unit.unit_support import (
    OK,
    FakeClock,
    House,
    LoopClock,
    ask,
    house,
    instance,
    leave,
    run_virtually,
    settle,
    ticket,
)

PATIENCE_SECONDS = 5.0


class Choosy:
    """Waits for instance `b` where that is busy, if the session says so; the last to come goes first."""

    def score(self, ticket: Ticket, candidates: Sequence[Candidate]) -> Scores:
        return told(Asked.by(ticket), candidates, [{"cost": float(each.id != "b")} for each in candidates])

    def picked(self, chosen: Candidate, candidates: Sequence[Candidate]) -> None:
        pass

    def order(self, scored: Sequence[Scored]) -> Sequence[tuple[float, Scored]]:
        return sorted(((-float(each[0].arrival), each) for each in scored), key=lambda ranked: ranked[0])

    def waits_until(
        self, ticket: Ticket, chosen: InstanceView, cost: float, busy: Sequence[InstanceView], now: float
    ) -> Wait | None:
        until = ticket.queued_at + PATIENCE_SECONDS
        wants = ticket.session == "waits" and any(each.id == "b" for each in busy)
        return Wait(until, "b", chosen.id) if wants and until > now else None


def choosy(clock: FakeClock | LoopClock) -> House:
    a, b = instance("a", slots=1), instance("b", slots=1)
    return house(clock, a, b, strategy="choosy", shelf={"choosy": lambda _: Choosy()})


def waiter(name: str, arrival: int, clock: FakeClock | LoopClock, session: str | None = "waits") -> Ticket:
    now = clock.monotonic()
    return ticket(name, arrival=arrival, session=session, queued_at=now, deadline=now + 100)


def test_the_strategy_of_these_tests_is_one_that_reckons() -> None:
    assert isinstance(Choosy(), Reckoning)


async def test_who_comes_later_takes_what_the_first_leaves() -> None:
    clock = FakeClock()
    it = choosy(clock)
    first = await it.dispatcher.acquire(waiter("0", 0, clock))
    waits = await ask(it, waiter("1", 1, clock))
    assert (first.instance, waits[0].done()) == ("b", False)

    later = await it.dispatcher.acquire(waiter("2", 2, clock, session=None))

    assert later.instance == "a"
    it.dispatcher.release(first, OK)
    await settle()
    assert waits[0].result().instance == "b"
    await leave(*waits)


async def test_a_slot_goes_to_whom_the_strategy_puts_first() -> None:
    clock = FakeClock()
    it = choosy(clock)
    leases = [await it.dispatcher.acquire(waiter(str(n), n, clock, session=None)) for n in range(2)]
    waits = await ask(it, *(waiter(str(n), n, clock, session=None) for n in range(2, 12)))

    it.dispatcher.release(leases[0], OK)
    await settle()

    assert [each.done() for each in waits] == [False] * 7 + [True] + [False] * 2, (
        "the eighth of those looked at"
    )
    await leave(*waits)


async def test_who_has_left_is_not_put_first() -> None:
    clock = FakeClock()
    it = choosy(clock)
    leases = [await it.dispatcher.acquire(waiter(str(n), n, clock, session=None)) for n in range(2)]
    waits = await ask(it, *(waiter(str(n), n, clock, session=None) for n in range(2, 5)))

    waits[2].cancel()
    it.dispatcher.release(leases[0], OK)
    await settle()

    assert [each.done() for each in waits] == [False, True, True]
    assert waits[1].result().ticket.id == "3"
    await leave(*waits)


def test_who_waits_by_choice_goes_where_it_can_when_that_is_over() -> None:
    async def main(clock: LoopClock) -> None:
        it = choosy(clock)
        await it.dispatcher.acquire(waiter("0", 0, clock))
        began_at = clock.monotonic()

        lease = await asyncio.wait_for(it.dispatcher.acquire(waiter("1", 1, clock)), 10)

        assert (lease.instance, clock.monotonic() - began_at) == (InstanceId("a"), PATIENCE_SECONDS)

    run_virtually(main)
