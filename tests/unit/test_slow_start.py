"""Slow start: who is back among others takes up its work slot by slot; who is alone does so at once."""

import asyncio

from balancer.core.ejection import Ejection
from balancer.core.names import canonical_name
from balancer.core.variant import Variant
from balancer.fleet.instance import Instance
from tests.unit.unit_support import House, LoopClock, house, instance, run_virtually, settle, ticket

M = Variant(canonical_name("m"))


def down_and_up(it: House, one: Instance) -> None:
    it.fleet.failed(one, "x", refused=True, incarnation=one.incarnation)
    for _ in range(2):
        it.fleet.probe_succeeded(one, version="1", incarnation=one.incarnation)
    it.fleet.inventory_read(one, models=None, runners=[{"name": "m"}], slots={}, at=1e9)
    assert one.usable


async def lent_by_second(it: House, one: Instance, *, requests: int, seconds: int) -> list[int]:
    """How many of so many requests are at an instance, second by second."""
    for number in range(requests):
        asking = it.dispatcher.acquire(ticket(f"t{number}", arrival=number, deadline=1e9))
        asyncio.get_running_loop().create_task(asking)
    counts = []
    for _ in range(seconds):
        await settle()
        counts.append(one.running)
        await asyncio.sleep(1)
    return counts


def test_an_instance_that_is_back_lends_its_slots_over_fifteen_seconds() -> None:
    async def main(clock: LoopClock) -> None:
        one, other = instance("a", slots=5), instance("b", slots=1)
        it = house(clock, one, other)
        other.take_slot(M.model, clock.monotonic())
        down_and_up(it, one)

        counts = await lent_by_second(it, one, requests=9, seconds=17)

        assert counts == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3 + [5] * 5
        assert it.decisions[0].filtered == {"b": "no free slot"}

    run_virtually(main)


def test_who_comes_back_alone_uses_all_slots_at_once() -> None:
    async def main(clock: LoopClock) -> None:
        one, other = instance("a", slots=5), instance("b", up=False)
        it = house(clock, one, other)
        down_and_up(it, one)

        assert await lent_by_second(it, one, requests=9, seconds=1) == [5]

    run_virtually(main)


def test_who_comes_up_for_the_first_time_uses_all_slots_at_once() -> None:
    async def main(clock: LoopClock) -> None:
        one, other = instance("a", slots=5, up=False), instance("b", models=["n"])
        it = house(clock, one, other)
        it.fleet.probe_succeeded(one, version="1", incarnation=one.incarnation)

        assert await lent_by_second(it, one, requests=9, seconds=1) == [5]

    run_virtually(main)


def test_who_was_ejected_starts_slowly_too_and_forgets_what_it_was_ejected_for() -> None:
    async def main(clock: LoopClock) -> None:
        one, other = instance("a", slots=5), instance("b", slots=1)
        it = house(clock, one, other)
        other.take_slot(M.model, clock.monotonic())
        it.fleet.eject(one, Ejection(reason="token", slow=True, health=0.1, until=0.0))
        out = await lent_by_second(it, one, requests=9, seconds=3)

        it.fleet.readmit(one)
        await settle()

        assert (out, one.running, one.ejection) == ([0, 0, 0], 1, None)

    run_virtually(main)


def test_without_a_slow_start_all_slots_are_lent_at_once() -> None:
    async def main(clock: LoopClock) -> None:
        one = instance("a", slots=5)
        it = house(clock, one, instance("b", models=["n"]))
        one.health.policy = type(one.health.policy)(slow_start_seconds=0)
        down_and_up(it, one)

        assert await lent_by_second(it, one, requests=9, seconds=1) == [5]

    run_virtually(main)
