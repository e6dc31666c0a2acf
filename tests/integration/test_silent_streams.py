"""An answer that begins and then gives nothing is cut after `limits.stream_idle_seconds`, and not before."""

import asyncio

import pytest

from balancer.core.ticket import InstanceId
from tests.fakes.raw_client import request
from tests.fakes.running_balancer import Running, balancing, until
from tests.fakes.scripted_instance import (
    DONE,
    END,
    ScriptedInstance,
    Send,
    Stall,
    Wait,
    chunk,
    head,
)

pytestmark = pytest.mark.both_sinks

GENERATE = {"model": "m", "prompt": "hi"}
STREAMED = head(200, "Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
EVENTS = head(200, "Content-Type: text/event-stream", "Transfer-Encoding: chunked")
LINE = b'{"model":"m","response":"a","done":false}\n'
SOON = {"stream_idle_seconds": 0.1}


def failures(running: Running, kind: str) -> float:
    labels = {"instance": "a", "model": "m:latest", "kind": kind}
    return running.balancer.metrics.registry.get_sample_value("balancer_errors_total", labels) or 0.0


async def test_stream_that_falls_silent_is_cut_and_told_in_the_stream() -> None:
    async with ScriptedInstance().running() as one, balancing(one, limits=SOON) as running:
        one.play(Send(STREAMED + chunk(LINE)), Stall())

        answer = await running.ask("/api/generate", GENERATE)

        assert (answer.status, answer.whole, answer.chunks[0]) == (200, False, LINE)
        assert b'{"error":"the instance sent nothing more for 0.1 s"}' in answer.body
        await asyncio.wait_for(one.requests[0].connection.closed.wait(), 20)
        await until(lambda: running.idle)
        assert failures(running, "timeout") == 1
        assert running.logged("request_finished")[0]["outcome"] == "truncated"
        assert (await running.ask("/api/generate", GENERATE)).status == 200


async def test_silence_is_told_in_the_dialect_of_the_stream() -> None:
    async with ScriptedInstance().running() as one, balancing(one, limits=SOON) as running:
        one.play(Send(EVENTS + chunk(b'data: {"id":"1"}\n\n')), Stall())

        answer = await running.ask("/v1/chat/completions", {"model": "m", "messages": [], "stream": True})

        assert answer.whole is False
        assert b"data: {" in answer.chunks[-1]
        assert b"sent nothing more" in answer.chunks[-1]


async def test_head_without_a_body_is_cut_too() -> None:
    async with ScriptedInstance().running() as one, balancing(one, limits=SOON) as running:
        one.play(Send(head(200, "Content-Type: application/json", "Content-Length: 9")), Stall())

        assert (await running.ask("/api/generate", GENERATE)).whole is False
        await until(lambda: running.idle)


async def test_wait_for_the_first_byte_is_no_silence() -> None:
    """The time of a load, a queue and a prefill; three times the limit pass before the answer begins."""
    go_on = asyncio.Event()
    async with ScriptedInstance().running() as one, balancing(one, limits=SOON) as running:
        one.play(Wait(go_on), Send(STREAMED + chunk(DONE) + END))
        asking = asyncio.create_task(running.ask("/api/generate", GENERATE))
        await one.seen(1)
        asyncio.get_running_loop().call_later(0.3, go_on.set)

        assert (await asking).chunks == (DONE,)


async def test_stream_that_gives_something_now_and_then_goes_on() -> None:
    limits = {"stream_idle_seconds": 0.5}
    gates = [asyncio.Event() for _ in range(6)]
    steps = [step for gate in gates for step in (Send(chunk(LINE)), Wait(gate))]
    async with ScriptedInstance().running() as one, balancing(one, limits=limits) as running:
        one.play(Send(STREAMED), *steps, Send(chunk(DONE) + END))
        for number, gate in enumerate(gates, start=1):
            asyncio.get_running_loop().call_later(0.15 * number, gate.set)

        answer = await running.ask("/api/generate", GENERATE)

        assert (answer.chunks, answer.whole) == ((LINE,) * 6 + (DONE,), True)


@pytest.mark.parametrize("content_type", ["application/json", "application/x-ndjson"])
async def test_answer_whose_reader_pauses_is_not_cut_for_it(content_type: str) -> None:
    """What was received whole belongs to the client, however slowly it reads."""
    body = b"x" * 200_000 + b"\n"
    opening = head(200, f"Content-Type: {content_type}", f"Content-Length: {len(body) + len(DONE)}")
    async with ScriptedInstance().running() as one, balancing(one, limits=SOON) as running:
        one.play(Send(opening + body + DONE))
        async with running.client() as client:
            await client.send(request("/api/generate", GENERATE))
            told = await client.head()
            client.pause()
            await until(lambda: running.balancer.fleet.get(InstanceId("a")).running == 0)
            await asyncio.sleep(0.3)  # three times the limit: nothing may happen in it
            client.resume()
            answer = await client.body_of(told)

        assert (answer.whole, answer.body) == (True, body + DONE)


async def test_silent_streams_open_the_breaker_in_the_end() -> None:
    breaker = {"threshold": 2, "reset_seconds": 60}
    limits = {"stream_idle_seconds": 0.05}
    async with (
        ScriptedInstance().running() as one,
        balancing(one, limits=limits, circuit_breaker=breaker) as running,
    ):
        for _ in range(2):
            one.play(Send(STREAMED + chunk(LINE)), Stall())
            await running.ask("/api/generate", GENERATE)
            await until(lambda: running.idle)

        assert (await running.ask("/api/generate", GENERATE)).status == 503
