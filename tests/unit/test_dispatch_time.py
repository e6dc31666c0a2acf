"""Dispatch and time: deadlines fire by themselves, by one timer, and waits are estimated from measures."""

import asyncio

import pytest

from balancer.core.ticket import Outcome, Verdict
from balancer.errors import DeadlinePassed
from tests.unit.unit_support import (
    OK,
    FakeClock,
    LoopClock,
    VirtualLoop,
    house,
    instance,
    run_virtually,
    settle,
    ticket,
)


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
    assert house(FakeClock(), instance("a")).dispatcher.retry_after_seconds() == 1.0


async def test_the_wait_to_expect_follows_from_measured_service() -> None:
    clock = FakeClock()
    it = house(clock, instance("a", slots=1))
    for seconds in (10.0, 20.0):
        lease = await it.dispatcher.acquire(ticket())
        clock.advance(seconds)
        it.dispatcher.release(lease, OK)

    held = await it.dispatcher.acquire(ticket("held"))
    waits = [asyncio.create_task(it.dispatcher.acquire(ticket(str(number)))) for number in range(2)]
    await settle()

    # 10 s, then a fifth of the way to 20 s; two wait, so the next would be the third.
    assert pytest.approx(it.dispatcher.retry_after_seconds()) == 36.0
    for each in waits:
        each.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    it.dispatcher.release(held, OK)


@pytest.mark.parametrize("verdict", [Verdict.FAILURE, Verdict.NEUTRAL])
async def test_only_success_is_a_measure_of_service(verdict: Verdict) -> None:
    clock = FakeClock()
    it = house(clock, instance("a"))
    lease = await it.dispatcher.acquire(ticket())
    clock.advance(500.0)
    it.dispatcher.release(lease, Outcome(verdict=verdict, kind="x"))

    assert it.dispatcher.retry_after_seconds() == 1.0
