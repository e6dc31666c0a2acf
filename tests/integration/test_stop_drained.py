"""Stopping with a grace: not ready at once, nothing new, and what ends in time ends whole."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from tests.fakes.raw_client import Answer, connected, request
from tests.fakes.running_balancer import Running, balancing, until
from tests.fakes.scripted_instance import DONE, END, ScriptedInstance, Send, Wait, chunk, head

GENERATE = {"model": "m", "prompt": "hi"}
STREAMED = head(200, "Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
LINE = b'{"model":"m","response":"a","done":false}\n'


@contextlib.asynccontextmanager
async def stopping(running: Running) -> AsyncIterator[None]:
    """The balancer is being stopped; ends when it has ended its answers."""
    task = asyncio.create_task(running.balancer._stop())
    await until(lambda: running.logged("stopping"))
    yield
    await asyncio.wait_for(task, 20)


async def get(url: str, path: str) -> Answer:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    async with connected(parts.hostname, parts.port) as client:
        await client.send(request(path, None, method="GET"))
        return await client.answer(method="GET")


@pytest.mark.parametrize("listener", ["clients", "admin", "metrics"])
async def test_it_is_not_ready_as_soon_as_it_is_being_stopped(listener: str) -> None:
    go_on = asyncio.Event()
    async with (
        ScriptedInstance().running() as one,
        balancing(one, metrics_listen="127.0.0.1:0") as running,
        running.client() as client,
    ):
        url = {
            "clients": running.addresses.clients,
            "admin": running.addresses.admin,
            "metrics": running.addresses.metrics or "",
        }[listener]
        before = await get(url, "/readyz")
        one.play(Send(STREAMED + chunk(LINE)), Wait(go_on), Send(chunk(DONE) + END))
        await client.send(request("/api/generate", GENERATE))
        await client.head()

        async with stopping(running):
            ready = await get(url, "/readyz")
            go_on.set()

        assert (before.status, ready.status) == (200, 503)


@pytest.mark.parametrize("path", ["/api/generate", "/v1/chat/completions", "/v1/messages", "/api/show"])
async def test_request_that_comes_in_the_grace_is_sent_away_with_its_connection(path: str) -> None:
    go_on = asyncio.Event()
    async with (
        ScriptedInstance().running() as one,
        balancing(one, each={"slots": 4}) as running,
        running.client() as client,
        running.client() as kept,
    ):
        await kept.send(request("/api/generate", GENERATE))
        assert (await kept.answer()).status == 200
        one.play(Send(STREAMED + chunk(LINE)), Wait(go_on), Send(chunk(DONE) + END))
        await client.send(request("/api/generate", GENERATE))
        await client.head()

        async with stopping(running):
            fresh = await running.ask(path, {**GENERATE, "messages": []})
            await kept.send(request(path, {**GENERATE, "messages": []}))
            on_kept = await kept.answer()
            rest = await kept.rest()
            go_on.set()
            assert [await client.chunk() for _ in range(3)] == [LINE, DONE, None]

        for answer in (fresh, on_kept):
            assert (answer.status, answer.whole) == (503, True)
            assert int(answer.header("retry-after") or 0) >= 1
            assert answer.header("connection") == "close"
            assert "stopped" in str(answer.json["error"])
        assert rest == b""
        assert len(one.requests) == 2


async def test_all_streams_that_end_within_the_grace_end_whole() -> None:
    gates = [asyncio.Event() for _ in range(8)]
    async with (
        ScriptedInstance().running() as one,
        balancing(one, each={"slots": 8}, limits={"stop_seconds": 20}) as running,
    ):
        for gate in gates:
            one.play(Send(STREAMED + chunk(LINE)), Wait(gate), Send(chunk(LINE) + chunk(DONE) + END))
        asking = [asyncio.create_task(running.ask("/api/generate", GENERATE)) for _ in gates]
        await one.seen(8)
        await until(lambda: all(each.answered_at for each in running.balancer.ledger.live()))

        async with stopping(running):
            for gate in gates:
                gate.set()
            answers = [await each for each in asking]

        assert {each.chunks for each in answers} == {(LINE, LINE, DONE)}
        assert all(each.whole for each in answers)


async def test_request_whose_answer_has_not_begun_is_answered_in_the_grace() -> None:
    go_on = asyncio.Event()
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.play(Wait(go_on), Send(STREAMED + chunk(DONE) + END))
        asking = asyncio.create_task(running.ask("/api/generate", GENERATE))
        await one.seen(1)

        async with stopping(running):
            go_on.set()
            answer = await asking

        assert (answer.status, answer.chunks) == (200, (DONE,))
