"""Dispatch and time: deadlines fire by themselves, by one timer, and waits are estimated from measures."""

import asyncio
from typing import Any

import pytest

from balancer.core.ticket import ClientId, Outcome, Verdict
from balancer.errors import DeadlinePassed, QueueFull, QueueTooLong
from tests.unit.unit_support import (
    OK,
    FakeClock,
    House,
    LoopClock,
    VirtualLoop,
    ask,
    house,
    instance,
    leave,
    run_virtually,
    settle,
    ticket,
)

FAILED = Outcome(verdict=Verdict.FAILURE, kind="x")
LEFT = Outcome(verdict=Verdict.NEUTRAL, kind="cancelled")


def timers(clock: LoopClock) -> int:
    """Timers of dispatch that are armed."""
    assert isinstance(clock.loop, VirtualLoop)
    scheduled = clock.loop._scheduled  # type: ignore[attr-defined]
    return sum(1 for each in scheduled if not each.cancelled() and "Dispatcher.wake" in repr(each))


def test_a_deadline_ends_a_wait_by_itself_and_on_time() -> None:
    async def body(clock: LoopClock) -> None:
        it = house(clock, instance("a", slots=1))
        await it.dispatcher.acquire(ticket("1"))

        with pytest.raises(DeadlinePassed, match=r"in 25\.0 s"):
            await it.dispatcher.acquire(ticket("2", queued_at=1000.0, deadline=1025.0))

        assert pytest.approx(clock.monotonic(), abs=0.01) == 1025.0
        assert len(it.queue) == 0

    run_virtually(body)


def test_deadlines_fire_in_their_own_order_whatever_the_order_of_arrival() -> None:
    async def body(clock: LoopClock) -> None:
        it = house(clock, instance("a", slots=1))
        await it.dispatcher.acquire(ticket("0"))
        fired: list[tuple[str, float]] = []

        async def wait(name: str, deadline: float) -> None:
            with pytest.raises(DeadlinePassed):
                await it.dispatcher.acquire(ticket(name, arrival=int(name), deadline=deadline))
            fired.append((name, round(clock.monotonic(), 3)))

        await asyncio.gather(wait("1", 1030.0), wait("2", 1010.0), wait("3", 1020.0))

        assert fired == [("2", 1010.0), ("3", 1020.0), ("1", 1030.0)]

    run_virtually(body)


def test_however_many_wait_there_is_one_timer_and_none_when_nobody_waits() -> None:
    async def body(clock: LoopClock) -> None:
        it = house(clock, instance("a", slots=1))
        lease = await it.dispatcher.acquire(ticket("0"))
        assert timers(clock) == 0

        waits = [
            asyncio.create_task(it.dispatcher.acquire(ticket(str(number), arrival=number)))
            for number in range(1, 9)
        ]
        await settle()
        assert timers(clock) == 1
        for each in waits[1:]:
            each.cancel()
        await settle()
        assert timers(clock) == 1
        it.dispatcher.release(lease, OK)
        await settle()
        assert timers(clock) == 0
        it.dispatcher.release(waits[0].result(), OK)

    run_virtually(body)


def test_the_last_who_leaves_takes_the_timer_along() -> None:
    async def body(clock: LoopClock) -> None:
        it = house(clock, instance("a", slots=1))
        lease = await it.dispatcher.acquire(ticket("0"))
        wait = asyncio.create_task(it.dispatcher.acquire(ticket("1")))
        await settle()

        wait.cancel()
        await settle()

        assert timers(clock) == 0
        it.dispatcher.release(lease, OK)

    run_virtually(body)


def test_the_timer_moves_with_the_first_deadline() -> None:
    async def body(clock: LoopClock) -> None:
        it = house(clock, instance("a", slots=1))
        await it.dispatcher.acquire(ticket("0"))
        first = asyncio.create_task(it.dispatcher.acquire(ticket("1", deadline=1010.0)))
        second = asyncio.create_task(it.dispatcher.acquire(ticket("2", arrival=2, deadline=1020.0)))
        await settle()

        first.cancel()
        with pytest.raises(DeadlinePassed):
            await second

        assert pytest.approx(clock.monotonic(), abs=0.01) == 1020.0

    run_virtually(body)


async def test_the_wait_to_expect_is_a_second_before_anything_was_measured() -> None:
    assert house(FakeClock(), instance("a")).dispatcher.retry_after_seconds(ticket()) == 1.0


async def served(it: House, clock: FakeClock, seconds: float) -> None:
    """Requests of that length, each alone, until they count."""
    for _ in range(3):
        assert it.dispatcher.retry_after_seconds(ticket()) == 1.0
        lease = await it.dispatcher.acquire(ticket())
        clock.advance(seconds)
        it.dispatcher.release(lease, OK)


async def test_the_wait_to_expect_follows_from_measured_work() -> None:
    clock = FakeClock()
    it = house(clock, instance("a", slots=1))
    await served(it, clock, 10.0)
    held = await it.dispatcher.acquire(ticket("held"))
    waits = await ask(it, *(ticket(str(number), arrival=number) for number in range(2)))

    # Two that wait, 10 s each, and half of the one that runs.
    assert pytest.approx(it.dispatcher.retry_after_seconds(ticket())) == 25.0
    assert it.dispatcher.charges.expected_waits() == {"0": (1, 5.0), "1": (2, 15.0)}
    await leave(*waits)
    it.dispatcher.release(held, OK)


@pytest.mark.parametrize(
    "instances",
    [{"a": {"slots": 2}}, {"a": {"slots": 1, "devices": ("0",)}, "b": {"slots": 1, "devices": ("0",)}}],
    ids=["one runner", "two instances of one device"],
)
async def test_requests_that_run_together_share_the_time_of_their_device(
    instances: dict[str, dict[str, Any]],
) -> None:
    clock = FakeClock()
    it = house(clock, *(instance(name, **facts) for name, facts in instances.items()))
    for _ in range(2):
        both = [await it.dispatcher.acquire(ticket(str(number))) for number in range(2)]
        clock.advance(10.0)
        for lease in both:
            it.dispatcher.release(lease, OK)
    held = [await it.dispatcher.acquire(ticket(str(number))) for number in range(2)]
    waits = await ask(it, ticket("w"))

    # Each had 5 s of the device.
    assert pytest.approx(it.dispatcher.retry_after_seconds(ticket())) == 7.5
    await leave(*waits)
    for lease in held:
        it.dispatcher.release(lease, OK)


async def test_who_would_wait_too_long_is_told_so_at_once() -> None:
    clock = FakeClock()
    it = house(clock, instance("a", slots=1))
    await served(it, clock, 10.0)
    held = await it.dispatcher.acquire(ticket("held"))
    waits = await ask(it, ticket("w", deadline=clock.monotonic() + 300.0))

    with pytest.raises(QueueTooLong):
        await it.dispatcher.acquire(ticket("hopeless", arrival=2, deadline=clock.monotonic() + 14.0))

    assert [len(it.queue), len(it.dispatcher.leases)] == [1, 1]
    await leave(*waits)
    it.dispatcher.release(held, OK)


async def test_who_asks_for_much_does_not_keep_another_waiting() -> None:
    clock = FakeClock()
    it = house(clock, instance("a", slots=1))
    await served(it, clock, 1.0)
    held = await it.dispatcher.acquire(ticket("held"))
    waits = await ask(it, *(ticket(str(number), arrival=number) for number in range(6)))
    waits += await ask(it, ticket("modest", arrival=9, client=ClientId("modest")))

    order = []
    for _ in waits:
        clock.advance(1.0)
        it.dispatcher.release(held, OK)
        await settle()
        (held,) = it.dispatcher.leases
        order.append(held.ticket.id)

    assert order == ["0", "modest", "1", "2", "3", "4", "5"]
    it.dispatcher.release(held, OK)


async def test_who_has_most_waiting_makes_way_where_too_many_wait() -> None:
    clock = FakeClock()
    it = house(clock, instance("a", slots=1), limit=2)
    held = await it.dispatcher.acquire(ticket("held"))
    greedy = await ask(it, *(ticket(str(number), arrival=number) for number in range(2)))

    modest = await ask(it, ticket("modest", arrival=9, client=ClientId("modest")))

    assert [each.done() for each in greedy] == [False, True]
    assert isinstance(greedy[1].exception(), QueueFull)
    assert not modest[0].done()
    clock.advance(3.0)
    it.dispatcher.release(held, OK)
    await settle()
    assert modest[0].done()
    it.dispatcher.release(modest[0].result(), OK)
    await settle()
    it.dispatcher.release(greedy[0].result(), OK)


@pytest.mark.parametrize("verdict", [Verdict.FAILURE, Verdict.NEUTRAL])
async def test_only_success_is_a_measure_of_work(verdict: Verdict) -> None:
    clock = FakeClock()
    it = house(clock, instance("a"))
    lease = await it.dispatcher.acquire(ticket())
    clock.advance(500.0)
    it.dispatcher.release(lease, Outcome(verdict=verdict, kind="x"))

    assert it.dispatcher.retry_after_seconds(ticket()) == 1.0


async def test_nobody_pays_for_what_failed_and_everybody_for_what_was_had() -> None:
    clock = FakeClock()
    it = house(clock, instance("a", slots=1))
    held = await it.dispatcher.acquire(ticket("held", client=ClientId("other")))
    for client, outcome in (("failed", FAILED), ("left", LEFT)):
        mine = ClientId(client)
        it.queue.enter(mine)  # stays, so what it has used is told
        before = it.queue.shares.used(mine)
        waits = await ask(it, ticket(client, client=mine))
        it.dispatcher.release(held, OK)
        await settle()
        clock.advance(4.0)
        it.dispatcher.release(waits[0].result(), outcome)
        held = await it.dispatcher.acquire(ticket("held", client=ClientId("other")))

        assert (0.0 if outcome is FAILED else 4.0) == it.queue.shares.used(mine) - before
    it.dispatcher.release(held, OK)
