"""Waiting for a slot: in the order of arrival, bounded in number and in time, and nobody is forgotten."""

import asyncio
import json

import pytest

from tests.fakes.raw_client import Answer
from tests.fakes.running_balancer import Running, balancing, until
from tests.fakes.scripted_instance import (
    DONE,
    ReadBody,
    Script,
    ScriptedInstance,
    SeenRequest,
    Send,
    Wait,
    chunked,
    whole,
)

pytestmark = pytest.mark.both_sinks

GENERATE = {"model": "m", "prompt": "hi"}
ONE_SLOT = {"slots": 1}


def numbers(instance: ScriptedInstance) -> list[int]:
    return [json.loads(each.body)["number"] for each in instance.requests]


async def begin_in_order(running: Running, count: int) -> list[asyncio.Task[Answer]]:
    """So many requests, each in the balancer before the next one comes."""
    tasks = []
    for number in range(count):
        tasks.append(asyncio.create_task(running.ask("/api/generate", {**GENERATE, "number": number})))
        await until(lambda wanted=number + 1: len(running.balancer.ledger.live()) == wanted)
        await until(lambda: _all_placed(running))
    return tasks


def _all_placed(running: Running) -> bool:
    balancer = running.balancer
    return len(balancer.queue) + len(balancer.dispatcher.leases) == len(balancer.ledger.live())


@pytest.mark.parametrize("slots", [1, 3])
async def test_requests_beyond_the_slots_wait_and_are_served_in_their_order(slots: int) -> None:
    async with ScriptedInstance().running() as one, balancing(one, each={"slots": slots}) as running:
        gates: list[asyncio.Event] = []

        def gated(_request: SeenRequest) -> Script:
            gates.append(asyncio.Event())
            return (ReadBody(), Wait(gates[-1]), Send(chunked(DONE)))

        one.otherwise = gated
        tasks = await begin_in_order(running, 12)
        for served in range(12):
            begun = min(12, served + slots)
            await until(lambda wanted=begun: len(gates) == wanted)
            assert len(running.balancer.dispatcher.leases) <= slots
            gates[served].set()
        answers = await asyncio.gather(*tasks)

        assert [each.status for each in answers] == [200] * 12
        assert sorted(numbers(one)) == list(range(12))
        if slots == 1:
            assert numbers(one) == list(range(12))
            assert len(one.connections) == 1


async def test_burst_on_several_instances_is_served_to_the_last() -> None:
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        balancing(one, two, each={"slots": 2}) as running,
    ):
        answers = await asyncio.gather(*(running.ask("/api/generate", GENERATE) for _ in range(60)))

        assert [each.status for each in answers] == [200] * 60
        assert len(one.requests) + len(two.requests) == 60
        assert max(len(one.connections), len(two.connections)) <= 2


async def test_model_without_a_free_slot_holds_up_no_other_model() -> None:
    async with ScriptedInstance("m", "n").running() as one, balancing(one, each=ONE_SLOT) as running:
        go_on = asyncio.Event()
        one.play(Wait(go_on), Send(chunked(DONE)))
        first, second = await begin_in_order(running, 2)

        assert (await running.ask("/api/generate", {**GENERATE, "model": "n"})).status == 200
        go_on.set()
        assert [(await each).status for each in (first, second)] == [200, 200]


async def test_route_that_needs_no_slot_does_not_wait_for_one() -> None:
    async with ScriptedInstance().running() as one, balancing(one, each=ONE_SLOT) as running:
        go_on = asyncio.Event()
        one.play(Wait(go_on), Send(chunked(DONE)))
        (first,) = await begin_in_order(running, 1)

        assert (await running.ask("/api/show", {"model": "m"})).status == 200
        go_on.set()
        await first


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/api/generate", None), ("/v1/chat/completions", "api_error"), ("/v1/messages", "overloaded_error")],
)
async def test_request_that_finds_the_queue_full_is_told_when_to_come_again(
    path: str, kind: str | None
) -> None:
    limits = {"queue_requests": 1}
    async with ScriptedInstance().running() as one, balancing(one, each=ONE_SLOT, limits=limits) as running:
        go_on = asyncio.Event()
        one.play(Wait(go_on), Send(chunked(DONE)))
        tasks = await begin_in_order(running, 2)

        refused = await running.ask(path, {**GENERATE, "messages": []})

        go_on.set()
        assert [(await each).status for each in tasks] == [200, 200]
        assert refused.status == 503
        assert int(refused.header("retry-after") or "0") >= 1
        assert kind is None or refused.json["error"]["type"] == kind
        assert (await running.ask("/api/generate", GENERATE)).status == 200


async def test_queue_of_no_places_still_lets_a_free_slot_be_used() -> None:
    limits = {"queue_requests": 0}
    async with ScriptedInstance().running() as one, balancing(one, each=ONE_SLOT, limits=limits) as running:
        assert (await running.ask("/api/generate", GENERATE)).status == 200


@pytest.mark.parametrize(("path", "kind"), [("/api/generate", None), ("/v1/messages", "timeout_error")])
async def test_request_that_waits_as_long_as_it_may_is_told_504(path: str, kind: str | None) -> None:
    async with ScriptedInstance().running() as one, balancing(one, each=ONE_SLOT) as running:
        go_on = asyncio.Event()
        one.play(Wait(go_on), Send(chunked(DONE)))
        (first,) = await begin_in_order(running, 1)

        late = await running.ask(path, {**GENERATE, "messages": []}, "X-Balancer-Timeout: 0.05")

        go_on.set()
        assert (await first).status == 200
        assert late.status == 504
        assert late.header("retry-after") is not None
        assert kind is None or late.json["error"]["type"] == kind
        assert len(one.requests) == 1


async def test_deadline_bounds_the_wait_and_not_the_answer() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        go_on = asyncio.Event()
        one.play(Wait(go_on), Send(whole(DONE.strip())))
        asking = asyncio.create_task(running.ask("/api/generate", GENERATE, "X-Balancer-Timeout: 0.05"))
        await one.seen(1)
        asyncio.get_running_loop().call_later(0.1, go_on.set)

        assert (await asking).status == 200


@pytest.mark.parametrize("asked", ["0", "-1", "soon", "inf", "nan"])
async def test_deadline_that_is_no_time_is_refused(asked: str) -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        assert (await running.ask("/api/generate", GENERATE, f"X-Balancer-Timeout: {asked}")).status == 400
        assert one.requests == []


async def test_waiting_requests_go_to_an_instance_that_comes_up() -> None:
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        balancing(one, two, up=2, each=ONE_SLOT, health={"interval_seconds": 0.1}) as running,
    ):
        two.refuse()
        await until(lambda: len(running.balancer.fleet.usable()) == 1)
        go_on = asyncio.Event()
        one.play(Wait(go_on), Send(chunked(DONE)))
        first, second = await begin_in_order(running, 2)

        await two.listen()

        assert (await second).header("x-balancer-instance") == "b"
        go_on.set()
        assert (await first).header("x-balancer-instance") == "a"


async def test_why_a_request_waits_can_be_asked_while_it_does() -> None:
    async with ScriptedInstance().running() as one, balancing(one, each=ONE_SLOT) as running:
        go_on = asyncio.Event()
        one.play(Wait(go_on), Send(chunked(DONE)))
        first, waiting = await begin_in_order(running, 2)
        (ticket,) = running.balancer.queue.pending()

        told = running.balancer.ledger.decisions(ticket.id)
        assert told is not None
        assert [each["waiting"] for each in told] == [
            {"why": "no free slot", "instead_of": None, "at_most_seconds": None}
        ]

        go_on.set()
        await asyncio.gather(first, waiting)
        told = running.balancer.ledger.decisions(ticket.id)
        assert told is not None
        assert [(each["standing"], each["waiting"]) for each in told] == [("picked", None)]
