"""Stopping: what is under way is told honestly, what waits is sent away, and nothing takes for ever."""

import asyncio

import pytest

from tests.fakes.raw_client import request
from tests.fakes.running_balancer import balancing, until
from tests.fakes.scripted_instance import DONE, END, ScriptedInstance, Send, Stall, Wait, chunk, head

pytestmark = pytest.mark.both_sinks

GENERATE = {"model": "m", "prompt": "hi"}
STREAMED = head(200, "Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
LINE = b'{"model":"m","response":"a","done":false}\n'


async def test_answer_that_needs_no_more_than_the_grace_ends_whole() -> None:
    go_on = asyncio.Event()
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.play(Send(STREAMED + chunk(LINE)), Wait(go_on), Send(chunk(DONE) + END))
        async with running.client() as client:
            await client.send(request("/api/generate", GENERATE))
            await client.head()
            stopping = asyncio.create_task(running.balancer._stop())
            await asyncio.sleep(0.05)
            go_on.set()

            assert [await client.chunk() for _ in range(3)] == [LINE, DONE, None]
        await stopping


async def test_answer_that_needs_more_is_told_not_to_be_whole() -> None:
    limits = {"stop_seconds": 0.05}
    async with ScriptedInstance().running() as one, balancing(one, limits=limits) as running:
        one.play(Send(STREAMED + chunk(LINE)), Stall())
        async with running.client() as client:
            await client.send(request("/api/generate", GENERATE))
            await client.head()
            stopping = asyncio.create_task(running.balancer._stop())

            answer = await client.rest()
        await stopping

        assert b'{"error":"the balancer was stopped before the answer was complete"}' in answer
        assert not answer.endswith(END)
        await until(lambda: running.idle)


async def test_request_that_waits_is_told_to_come_again() -> None:
    async with ScriptedInstance().running() as one, balancing(one, each={"slots": 1}) as running:
        go_on = asyncio.Event()
        one.play(Send(STREAMED + chunk(LINE)), Wait(go_on), Send(chunk(DONE) + END))
        async with running.client() as client, running.client() as queued:
            await client.send(request("/api/generate", GENERATE))
            await client.head()
            await queued.send(request("/api/generate", GENERATE))
            await until(lambda: len(running.balancer.queue))
            stopping = asyncio.create_task(running.balancer._stop())

            answer = await queued.answer()
            go_on.set()
            await stopping

        assert (answer.status, answer.header("Retry-After")) == (503, "1")


async def test_unload_waits_for_no_instance_that_begins_an_answer_and_stalls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model that stays resident must not hold up its own unload for ever."""
    monkeypatch.setattr("balancer.forwarding.stores._UNLOAD_SECONDS", 0.1)
    async with ScriptedInstance().running() as one:
        one.lies = {"/api/ps": b'{"models":[{"name":"m","digest":"d"}]}'}
        async with balancing(one) as running:
            one.play(Send(STREAMED), Stall())

            answer = await running.ask("/api/generate", {"model": "m", "keep_alive": 0})

            assert (answer.status, len(one.requests)) == (200, 2)
