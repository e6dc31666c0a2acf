"""Dispatch where a slot is not all that it takes: models to be loaded, slots that cool, breakers."""

import asyncio

import pytest

from balancer.core.ticket import Blame, InstanceId, Outcome, Priority, Ticket, Verdict
from balancer.errors import NoInstance
from balancer.fleet.breaker import BreakerPolicy, Breakers
from balancer.fleet.courses import Company
from balancer.fleet.health import Health, HealthPolicy
from balancer.fleet.instance import Instance
from balancer.fleet.instance_spec import InstanceSpec
from balancer.fleet.rates import Work
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

LEFT = Outcome(verdict=Verdict.NEUTRAL, kind="cancelled", in_prefill=True)
FAULT = Outcome(verdict=Verdict.FAILURE, kind="crash", error="the runner crashed")
CANNOT = Outcome(verdict=Verdict.FAILURE, kind="oom", error="out of memory", blames=Blame.VARIANT)
GONE = Outcome(verdict=Verdict.FAILURE, kind="connection_lost", error="it broke off", blames=Blame.INSTANCE)
BUSY = Outcome(verdict=Verdict.NEUTRAL, kind="busy", error="server busy")
QUICK = BreakerPolicy(threshold=1, reset_seconds=30.0)


def patient(name: str, clock: LoopClock | FakeClock, **facts: object) -> Ticket:
    now = clock.monotonic()
    return ticket(name, queued_at=now, deadline=now + 1000, **facts)


def end_load(it: House, outcome: Outcome) -> None:
    where, load = it.loads.pop()
    it.fleet.loaded(where, load, outcome)
    it.fleet.load_ended(where, load, outcome)


def numbered(count: int) -> list[Ticket]:
    return [ticket(str(number), arrival=number) for number in range(1, count + 1)]


async def test_those_that_wait_for_a_load_cause_one_and_then_go_in_their_order() -> None:
    it = house(FakeClock(), instance("a", cold=True, slots=2))
    waits = await ask(it, *numbered(4))
    assert (len(it.loads), [each.done() for each in waits]) == (1, [False] * 4)

    end_load(it, OK)
    await settle()

    assert [each.done() for each in waits] == [True, True, False, False]
    it.dispatcher.release(waits[0].result(), OK)
    await settle()
    assert waits[2].done()
    assert it.loads == []
    await leave(*waits)


async def test_who_left_leaves_the_load_to_those_behind() -> None:
    it = house(FakeClock(), instance("a", cold=True))
    first, second = await ask(it, *numbered(2))

    first.cancel()
    await settle()
    assert len(it.loads) == 1
    end_load(it, OK)
    await settle()

    assert (second.done(), it.loads) == (True, [])


@pytest.mark.parametrize(("outcome", "seconds"), [(CANNOT, 60.0), (FAULT, 1.0), (GONE, 1.0)])
async def test_a_failed_load_is_told_to_all_that_wait_with_its_reason(
    outcome: Outcome, seconds: float
) -> None:
    it = house(FakeClock(), instance("a", cold=True))
    waits = await ask(it, *numbered(3))

    end_load(it, outcome)
    await settle()

    for each in waits:
        error = each.exception()
        assert isinstance(error, NoInstance)
        assert (outcome.error in str(error), error.retry_after_seconds) == (True, seconds)
    assert (it.loads, len(it.queue)) == ([], 0)


def test_a_load_that_came_to_nothing_is_begun_again_a_moment_later() -> None:
    async def body(clock: LoopClock) -> None:
        it = house(clock, instance("a", cold=True))
        waits = await ask(it, *(patient(str(number), clock, arrival=number) for number in range(3)))

        end_load(it, BUSY)
        await asyncio.sleep(0.9)
        assert (it.loads, [each.done() for each in waits]) == ([], [False] * 3)
        await asyncio.sleep(0.2)

        assert [where.id for where, _ in it.loads] == ["a"]
        end_load(it, OK)
        await settle()
        assert waits[0].result().instance == "a"

    run_virtually(body)


async def test_a_failed_load_is_begun_at_another_instance() -> None:
    it = house(FakeClock(), instance("a", cold=True), instance("b", cold=True, slots=3))
    waits = await ask(it, *numbered(3))
    tried = it.loads[0][0]

    end_load(it, CANNOT)
    await settle()

    ((again, _),) = it.loads
    assert again is not tried
    assert not any(each.done() for each in waits)
    await leave(*waits)


async def test_one_instance_loads_one_model_at_a_time_and_then_the_next() -> None:
    it = house(FakeClock(), instance("a", models=("m", "n"), cold=True))
    m, n = await ask(it, ticket("m"), ticket("n", model="n", arrival=2))
    assert [load.variant.model for _, load in it.loads] == ["m:latest"]

    end_load(it, OK)
    await settle()

    assert [load.variant.model for _, load in it.loads] == ["n:latest"]
    assert (m.done(), n.done()) == (True, False)
    await leave(m, n)


async def test_a_second_instance_loads_only_when_the_load_at_the_first_is_over() -> None:
    clock = FakeClock()
    it = house(clock, instance("a", cold=True, slots=2), instance("b", cold=True, slots=2))
    waits = await ask(it, *numbered(2))
    assert len(it.loads) == 1
    first = it.loads[0][0]

    end_load(it, OK)
    await settle()

    assert ([each.done() for each in waits], len(it.loads)) == ([True, False], 1)
    assert waits[0].result().instance == first.id
    assert it.loads[0][0] is not first  # the one with fewer running, though it is cold
    clock.advance(1.0)
    it.dispatcher.wake()
    await settle()
    assert waits[1].result().instance == first.id  # the load takes long, and a slot is free there


async def test_who_waits_for_the_load_at_a_second_instance_takes_a_slot_that_came_back() -> None:
    clock = FakeClock()
    it = house(clock, instance("a", cold=True, slots=1), instance("b", cold=True, slots=1))
    waits = await ask(it, *numbered(2))
    end_load(it, OK)
    await settle()
    assert ([each.done() for each in waits], len(it.loads)) == ([True, False], 1)
    clock.advance(1.0)
    it.dispatcher.wake()
    await settle()
    assert not waits[1].done()

    it.dispatcher.release(waits[0].result(), OK)
    await settle()

    assert waits[1].result().instance == waits[0].result().instance


def test_the_load_that_a_strategy_began_is_waited_for_alone_for_a_second() -> None:
    async def body(clock: LoopClock) -> None:
        it = house(clock, instance("a", slots=2), instance("b", cold=True))
        first = await it.dispatcher.acquire(patient("1", clock))
        assert first.instance == "a"
        (wait,) = await ask(it, patient("2", clock, arrival=2))
        assert [where.id for where, _ in it.loads] == ["b"]

        assert (await wait).instance == "a"
        assert clock.monotonic() == pytest.approx(1001.0, abs=0.01)
        assert len(it.loads) == 1

    run_virtually(body)


async def test_who_overtakes_one_that_waits_for_its_load_takes_what_is_free() -> None:
    it = house(FakeClock(), instance("a", slots=2), instance("b", cold=True))
    await it.dispatcher.acquire(ticket("1"))
    await ask(it, ticket("2", arrival=2))
    assert [where.id for where, _ in it.loads] == ["b"]

    (behind,) = await ask(it, ticket("3", arrival=3))
    (ahead,) = await ask(it, ticket("4", arrival=4, priority=Priority.INTERACTIVE))

    assert (ahead.done(), behind.done()) == (True, False)
    assert ahead.result().instance == "a"


def test_a_load_that_is_over_within_the_second_serves_who_began_it() -> None:
    async def body(clock: LoopClock) -> None:
        it = house(clock, instance("a", slots=2), instance("b", cold=True))
        await it.dispatcher.acquire(patient("1", clock))
        (wait,) = await ask(it, patient("2", clock, arrival=2))

        await asyncio.sleep(0.5)
        end_load(it, OK)

        assert (await wait).instance == "b"
        assert clock.monotonic() == pytest.approx(1000.5, abs=0.01)

    run_virtually(body)


def test_a_load_that_is_overdue_is_begun_elsewhere() -> None:
    async def body(clock: LoopClock) -> None:
        it = house(clock, instance("a", cold=True), instance("b", cold=True))
        (wait,) = await ask(it, patient("1", clock))
        assert len(it.loads) == 1

        await asyncio.sleep(59.9)
        assert len(it.loads) == 1
        await asyncio.sleep(0.2)
        assert {where.id for where, _ in it.loads} == {"a", "b"}

        end_load(it, OK)
        await wait

    run_virtually(body)


async def test_a_load_that_is_answered_but_not_over_serves_already() -> None:
    it = house(FakeClock(), instance("a", cold=True))
    (wait,) = await ask(it, ticket())

    it.fleet.loaded(*it.loads[0], OK)
    it.dispatcher.wake()
    await settle()

    assert wait.done()
    end_load(it, OK)


async def test_who_comes_before_the_first_probe_waits_for_it() -> None:
    a = Instance(
        InstanceSpec(id=InstanceId("a"), url="http://a:1"), Health(HealthPolicy()), Breakers(BreakerPolicy())
    )
    it = house(FakeClock(), a)
    (wait,) = await ask(it, ticket())
    assert not wait.done()

    it.fleet.failed(a, "slow", refused=False, incarnation=a.incarnation)
    await settle()
    assert isinstance(wait.exception(), NoInstance)


def test_who_waits_for_a_load_takes_a_warm_slot_that_is_free_sooner() -> None:
    async def body(clock: LoopClock) -> None:
        a, b = instance("a", slots=1), instance("b", cold=True)
        it = house(clock, a, b)
        it.fleet.pause(a, for_seconds=3.0)
        (wait,) = await ask(it, patient("1", clock))
        assert [where.id for where, _ in it.loads] == ["b"]

        assert (await wait).instance == "a"
        assert clock.monotonic() == pytest.approx(1003.0, abs=0.01)

    run_virtually(body)


def test_a_cancelled_prompt_cools_its_slot_before_it_is_lent_again() -> None:
    async def body(clock: LoopClock) -> None:
        a = instance("a", slots=1)
        it = house(clock, a)
        model = ticket().variant.model  # type: ignore[union-attr]  # it names a model
        a.learned.book.learn(a.spec.url, model, Work(prompt_tokens=1000, prompt_seconds=4.0), Company())
        lease = await it.dispatcher.acquire(patient("1", clock))
        (wait,) = await ask(it, patient("2", clock, arrival=2))

        it.dispatcher.release(lease, LEFT)
        await settle()
        assert (wait.done(), a.running, a.cooling) == (False, 0, 1)

        await wait
        assert clock.monotonic() == pytest.approx(1000.0 + 512 / 250, abs=0.01)
        assert a.cooling == 0

    run_virtually(body)


@pytest.mark.parametrize("outcome", [OK, FAULT, Outcome(verdict=Verdict.NEUTRAL, kind="cancelled")])
async def test_only_a_prompt_that_was_cancelled_cools(outcome: Outcome) -> None:
    a = instance("a", slots=1)
    it = house(FakeClock(), a)
    lease = await it.dispatcher.acquire(ticket())

    it.dispatcher.release(lease, outcome)

    assert (a.cooling, a.has_free_slot(ticket().variant)) == (0, True)  # type: ignore[arg-type]


async def test_cooling_counts_against_the_cap_of_the_instance() -> None:
    a = instance("a", models=("m", "n"), slots=5, max_concurrent_requests=1)
    it = house(FakeClock(), a)
    it.dispatcher.release(await it.dispatcher.acquire(ticket()), LEFT)

    (wait,) = await ask(it, ticket("n", model="n"))

    assert not wait.done()
    wait.cancel()
    await asyncio.gather(wait, return_exceptions=True)


async def test_what_ran_in_an_earlier_life_cools_nothing() -> None:
    a = instance("a", slots=1, thresholds=(1, 1))
    it = house(FakeClock(), a)
    lease = await it.dispatcher.acquire(ticket())
    it.fleet.failed(a, "refused", refused=True, incarnation=a.incarnation)

    it.dispatcher.release(lease, LEFT)

    assert (a.running, a.cooling) == (0, 0)


async def test_who_is_held_back_is_told_why_and_when_to_come_again() -> None:
    clock = FakeClock()
    it = house(clock, instance("a", breaker=QUICK), instance("b", breaker=QUICK))
    leases = [await it.dispatcher.acquire(each) for each in numbered(2)]
    it.dispatcher.release(leases[0], FAULT)
    clock.advance(12.0)
    it.dispatcher.release(leases[1], FAULT)
    clock.advance(1.0)

    with pytest.raises(
        NoInstance, match=r"left alone for a while after failures.*the runner crashed"
    ) as caught:
        await it.dispatcher.acquire(ticket())

    assert caught.value.retry_after_seconds == 30.0 - 13.0


async def test_who_waits_is_told_as_soon_as_the_last_breaker_opens() -> None:
    it = house(FakeClock(), instance("a", slots=1, breaker=QUICK))
    lease = await it.dispatcher.acquire(ticket("1"))
    (wait,) = await ask(it, ticket("2", arrival=2))

    it.dispatcher.release(lease, FAULT)
    await settle()

    assert isinstance(wait.exception(), NoInstance)


def test_who_waits_elsewhere_goes_to_an_instance_whose_breaker_reopens() -> None:
    async def body(clock: LoopClock) -> None:
        it = house(clock, instance("a", slots=1, breaker=QUICK), instance("b", slots=1, breaker=QUICK))
        first = await it.dispatcher.acquire(patient("1", clock, excluded=frozenset({InstanceId("a")})))
        await it.dispatcher.acquire(patient("2", clock, arrival=2))
        await asyncio.sleep(1.0)
        it.dispatcher.release(first, FAULT)
        (wait,) = await ask(it, patient("3", clock, arrival=3))

        assert (await wait).instance == "b"
        assert clock.monotonic() == pytest.approx(1031.0, abs=0.01)

    run_virtually(body)


async def test_an_instance_that_becomes_suspect_while_it_loads_is_not_waited_for() -> None:
    a, b = instance("a", cold=True), instance("b", cold=True)
    it = house(FakeClock(), a, b)
    (wait,) = await ask(it, ticket())
    loading, other = (a, b) if it.loads[0][0] is a else (b, a)

    it.fleet.failed(loading, "slow", refused=False, incarnation=loading.incarnation)
    await settle()

    assert [where for where, _ in it.loads] == [loading, other]
    wait.cancel()
    await asyncio.gather(wait, return_exceptions=True)
