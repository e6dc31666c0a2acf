"""Dispatch: whoever could go is looked at, at the latest in the loop's next turns, and no turn takes long;
whoever left counts no more."""

import pytest

from balancer.admission.overload import INTERVALS, WaitLimits
from balancer.core.ticket import Blame, Lease, Outcome, Priority, TicketId, Verdict
from balancer.errors import NoInstance
from balancer.fleet.breaker import BreakerPolicy
from balancer.scheduling.scheduler import PAIRS
from tests.unit.unit_support import OK, FakeClock, House, ask, house, instance, leave, settle, ticket

GONE = Outcome(verdict=Verdict.FAILURE, kind="connection_lost", error="it broke off", blames=Blame.INSTANCE)
ON_TRIAL = BreakerPolicy(threshold=1, reset_seconds=30.0, permits=1)


async def test_a_trial_that_goes_well_lets_those_go_that_want_another_model() -> None:
    clock = FakeClock()
    it = house(clock, instance("a", models=("m", "n"), slots=2, breaker=ON_TRIAL))
    first = await it.dispatcher.acquire(ticket("1"))
    clock.advance(1.0)
    it.dispatcher.release(first, GONE)
    clock.advance(31.0)
    trial = await it.dispatcher.acquire(ticket("2", arrival=2))
    waits = await ask(it, ticket("3", arrival=3, model="n"))
    assert not waits[0].done()

    clock.advance(1.0)
    it.dispatcher.release(trial, OK)
    await settle()

    assert waits[0].done()
    await leave(*waits)


async def test_where_all_have_to_be_sent_away_one_turn_of_the_loop_tells_a_bounded_number() -> None:
    alone = instance("a", slots=1)
    it = house(FakeClock(), alone)
    await it.dispatcher.acquire(ticket("0", arrival=0))
    waits = await ask(it, *(ticket(str(number), arrival=number) for number in range(1, PAIRS + 100)))
    it.decisions.clear()

    it.fleet.failed(alone, "gone", refused=True, incarnation=alone.incarnation)

    assert len(it.decisions) == PAIRS
    await settle()
    assert all(isinstance(each.exception(), NoInstance) for each in waits)


async def measured(it: House, clock: FakeClock, *, seconds: float) -> Lease:
    """Let a request take so long, and have the slot held again."""
    lease = await it.dispatcher.acquire(ticket("measured", arrival=-2))
    clock.advance(seconds)
    it.dispatcher.release(lease, OK)
    return await it.dispatcher.acquire(ticket("held", arrival=-1))


async def test_a_delay_that_was_kept_when_most_had_left_does_not_stand() -> None:
    clock, delay = FakeClock(), 5.0
    strict = WaitLimits(longest=300.0, standing={Priority.INTERACTIVE: delay})
    it = house(clock, instance("a", slots=1), wait_limits=strict)
    await measured(it, clock, seconds=2.0)
    waits = await ask(
        it, *(ticket(str(number), arrival=number, priority=Priority.INTERACTIVE) for number in range(10))
    )
    await leave(*waits[2:])
    clock.advance(delay * INTERVALS)

    waits += await ask(it, ticket("later", arrival=10, priority=Priority.INTERACTIVE))

    assert not waits[-1].done()
    await leave(*waits)


async def test_what_waited_before_anything_was_measured_counts_by_what_was_measured_then() -> None:
    clock = FakeClock()
    it = house(clock, instance("a", slots=1), wait_limits=WaitLimits(longest=300.0))
    waits = await ask(it, *(ticket(str(number), arrival=number) for number in range(500)))

    for served in waits[:3]:
        clock.advance(0.05)
        it.dispatcher.release(served.result(), OK)
        await settle()
    waits += await ask(it, ticket("later", arrival=500))

    # 496 of 0.05 s and half of the one that runs, though each was taken for 1 s when it came.
    assert not waits[-1].done()
    assert pytest.approx(it.dispatcher.charges.expected_waits()[TicketId("later")][1] or 0.0) == 24.825
    await leave(*waits)
