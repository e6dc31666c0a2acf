"""Dispatch: whoever could go is looked at, at the latest in the loop's next turns, and no turn takes long."""

from balancer.core.ticket import Blame, Outcome, Verdict
from balancer.errors import NoInstance
from balancer.fleet.breaker import BreakerPolicy
from balancer.scheduling.scheduler import PAIRS
from tests.unit.unit_support import OK, FakeClock, ask, house, instance, leave, settle, ticket

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
