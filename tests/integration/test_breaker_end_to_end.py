"""Breakers over real HTTP: what opens one, what does not, and how it lets requests try again."""

import asyncio
from collections.abc import Callable

import pytest

from balancer.core.names import ModelName
from balancer.core.ticket import InstanceId
from balancer.fleet.breaker import BreakerState
from tests.fakes.raw_client import request
from tests.fakes.running_balancer import Running, balancing, until
from tests.fakes.scripted_instance import (
    DONE,
    ReadBody,
    Reset,
    Script,
    ScriptedInstance,
    Send,
    Stall,
    Turn,
    Wait,
    chunk,
    chunked,
    head,
    whole,
)

M = ModelName("m:latest")
GENERATE = {"model": "m", "prompt": "hi"}
STREAMED = head(200, "Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
LINE = b'{"model":"m","response":"a","done":false}\n'
CRASH = b'{"error":"an error was encountered while running the model: unexpected EOF"}'
GOOD: Script = (ReadBody(), Send(chunked(DONE)))
FAULTS: dict[str, Script] = {
    "crash": (ReadBody(), Send(whole(CRASH, status=500))),
    "unknown 500": (ReadBody(), Send(whole(b'{"error":"x"}', status=500))),
    "cut off": (ReadBody(), Send(STREAMED + chunk(LINE)), Turn(), Reset()),
    "error record": (ReadBody(), Send(chunked(LINE, b'{"error":"unexpected EOF"}\n'))),
    "web page": (ReadBody(), Send(chunked(b"<html></html>", content_type="text/html"))),
    "no HTTP": (ReadBody(), Send(b"SSH-2.0-OpenSSH\r\n")),
}
NO_FAULTS: dict[str, Script] = {
    "bad request": (ReadBody(), Send(whole(b'{"error":"invalid input type"}', status=400))),
    "option": (ReadBody(), Send(whole(b'{"error":"option \\"x\\" must be of type integer"}', status=500))),
    "forbidden": (ReadBody(), Send(whole(b"{}", status=403))),
    "no such path": (ReadBody(), Send(whole(b"404 page not found", status=404))),
    "unfinished": (ReadBody(), Send(chunked(LINE))),
    "good": GOOD,
}


OF_THE_INSTANCE = {"cut off", "web page", "no HTTP"}
"""Faults that are told by more than an answer about one model."""


def state(running: Running, name: str = "a") -> BreakerState:
    """What stands in the way of a request for m: the instance's own breaker, or that of the model there."""
    breakers, now = running.balancer.fleet.get(InstanceId(name)).breakers, running.balancer.clock.monotonic()
    own, models = breakers.state(now), breakers.states(now)
    return own if own is not BreakerState.CLOSED else models.get(M, own)


def shown(running: Running, model: str = "") -> float | None:
    """What the metrics tell of a breaker of instance a."""
    running.balancer.report.metrics()
    labels = {"instance": "a", "model": model}
    return running.balancer.metrics.registry.get_sample_value("balancer_breaker_state", labels)


async def ask_one_after_another(running: Running, count: int) -> list[int]:
    statuses = []
    for _ in range(count):
        statuses.append((await running.ask("/api/generate", GENERATE)).status)
        await until(lambda: running.idle)
    return statuses


@pytest.mark.parametrize("fault", FAULTS)
async def test_breaker_opens_after_five_faults_one_after_another(fault: str) -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.otherwise = lambda _request: FAULTS[fault]

        await ask_one_after_another(running, 4)
        assert (state(running), shown(running)) == (BreakerState.CLOSED, 0)
        await ask_one_after_another(running, 1)
        own = fault in OF_THE_INSTANCE
        assert (state(running), shown(running, M), shown(running)) == (BreakerState.OPEN, 2, 2 * own)

        held_back = await running.ask("/api/generate", GENERATE)
        assert (held_back.status, len(one.requests)) == (503, 5)
        assert 50 < int(held_back.header("retry-after") or 0) <= 60
        row = running.balancer.report.instance(InstanceId("a"))
        assert (row["breaker"], row["breakers"]) == ("open" if own else "closed", {M: "open"})
        assert row["state"] == "up"


async def test_failures_of_one_model_spare_the_others_until_a_second_one_fails() -> None:
    async with ScriptedInstance("m", "n").running() as one, balancing(one) as running:
        one.otherwise = lambda _request: FAULTS["crash"]
        await ask_one_after_another(running, 5)
        assert shown(running) == 0

        answer = await running.ask("/api/generate", {"model": "n", "prompt": "hi"})

        assert (answer.status, shown(running)) == (500, 2)


@pytest.mark.parametrize("answer", NO_FAULTS)
async def test_what_is_no_fault_of_the_instance_opens_nothing(answer: str) -> None:
    async with (
        ScriptedInstance().running() as one,
        balancing(one, circuit_breaker={"threshold": 1}) as running,
    ):
        one.otherwise = lambda _request: NO_FAULTS[answer]

        await ask_one_after_another(running, 8)

        assert (state(running), len(one.requests)) == (BreakerState.CLOSED, 8)


async def test_one_fault_that_takes_twenty_requests_with_it_counts_once() -> None:
    die = asyncio.Event()
    async with ScriptedInstance().running() as one, balancing(one, each={"slots": 20}) as running:
        one.otherwise = lambda _request: (ReadBody(), Wait(die), Send(whole(CRASH, status=500)))
        asking = [asyncio.create_task(running.ask("/api/generate", GENERATE)) for _ in range(20)]
        await one.seen(20)
        die.set()

        assert [(await each).status for each in asking] == [500] * 20
        assert state(running) is BreakerState.CLOSED
        one.otherwise = lambda _request: GOOD
        assert await ask_one_after_another(running, 1) == [200]


@pytest.mark.parametrize("leave", ["before the first byte", "in the stream"])
async def test_clients_that_leave_open_nothing(leave: str) -> None:
    begun: Script = (Send(STREAMED + chunk(LINE)),) if leave == "in the stream" else ()
    async with (
        ScriptedInstance().running() as one,
        balancing(one, circuit_breaker={"threshold": 1}) as running,
    ):
        one.otherwise = lambda _request: (ReadBody(), *begun, Stall())
        for number in range(1, 6):
            async with running.client() as client:
                await client.send(request("/api/generate", GENERATE))
                await one.seen(number)
                if begun:
                    await client.head()
            await until(lambda: running.idle)

        assert state(running) is BreakerState.CLOSED


async def test_slow_readers_open_nothing() -> None:
    limits = {"stream_buffer_bytes": 1 << 20}
    flood: Script = (ReadBody(), *(Send(STREAMED), *([Send(chunk(LINE * 2000))] * 400)), Stall())
    async with (
        ScriptedInstance().running() as one,
        balancing(one, limits=limits, circuit_breaker={"threshold": 1}) as running,
    ):
        one.otherwise = lambda _request: flood
        for _ in range(2):
            async with running.client() as client:
                await client.send(request("/api/generate", GENERATE))
                await client.head()
                client.pause()
                await until(lambda: running.idle, "the end of a stream that is not read")

        assert state(running) is BreakerState.CLOSED
        assert len(one.requests) == 2


async def opened(running: Running, one: ScriptedInstance, *, threshold: int) -> None:
    one.otherwise = lambda _request: FAULTS["crash"]
    await ask_one_after_another(running, threshold)
    assert state(running) is BreakerState.OPEN


def half_open(running: Running) -> Callable[[], bool]:
    return lambda: state(running) is BreakerState.HALF_OPEN


async def test_half_open_breaker_lets_two_try_and_closes_at_a_success() -> None:
    breaker = {"threshold": 2, "reset_seconds": 0.1, "permits": 2}
    async with (
        ScriptedInstance().running() as one,
        balancing(one, circuit_breaker=breaker, each={"slots": 9}) as running,
    ):
        await opened(running, one, threshold=2)
        go_on = asyncio.Event()
        one.otherwise = lambda _request: (ReadBody(), Wait(go_on), Send(chunked(DONE)))
        await until(half_open(running))

        asking = [asyncio.create_task(running.ask("/api/generate", GENERATE)) for _ in range(9)]
        await one.seen(4)
        await until(lambda: len(running.balancer.queue) == 7)
        assert (len(one.requests), shown(running, M)) == (4, 1)
        go_on.set()

        assert [(await each).status for each in asking] == [200] * 9
        assert (state(running), shown(running)) == (BreakerState.CLOSED, 0)


async def test_failed_trial_opens_it_again_and_the_rest_is_told() -> None:
    breaker = {"threshold": 1, "reset_seconds": 1.0, "permits": 1}
    async with ScriptedInstance().running() as one, balancing(one, circuit_breaker=breaker) as running:
        await opened(running, one, threshold=1)
        go_on = asyncio.Event()
        one.otherwise = lambda _request: (ReadBody(), Wait(go_on), Send(whole(CRASH, status=500)))
        await until(half_open(running))
        trial = asyncio.create_task(running.ask("/api/generate", GENERATE))
        await one.seen(2)
        waiting = asyncio.create_task(running.ask("/api/generate", GENERATE))
        await until(lambda: len(running.balancer.queue) == 1)

        go_on.set()

        assert (await trial).status == 500
        told = await waiting
        assert (told.status, told.header("retry-after")) == (503, "1")
        assert "unexpected EOF" in told.json["error"]
        assert len(one.requests) == 2


async def test_departure_on_trial_gives_the_permit_back() -> None:
    breaker = {"threshold": 1, "reset_seconds": 0.1, "permits": 1}
    async with ScriptedInstance().running() as one, balancing(one, circuit_breaker=breaker) as running:
        await opened(running, one, threshold=1)
        one.otherwise = lambda _request: (ReadBody(), Stall())
        await until(half_open(running))
        async with running.client() as client:
            await client.send(request("/api/generate", GENERATE))
            await one.seen(2)
        one.otherwise = lambda _request: GOOD

        assert await ask_one_after_another(running, 1) == [200]
        assert state(running) is BreakerState.CLOSED


async def test_requests_go_elsewhere_while_one_breaker_is_open() -> None:
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        balancing(one, two, strategy="round_robin", circuit_breaker={"threshold": 1}) as running,
    ):
        one.otherwise = lambda _request: FAULTS["crash"]

        assert await ask_one_after_another(running, 12) == [200] * 12
        assert (len(one.requests), len(two.requests)) == (1, 12)
