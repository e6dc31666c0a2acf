"""Answers of vLLM and llama-server that come as a stream, fail, break off, or are left by their client."""

import asyncio
import json
from typing import Any

import pytest

from tests.fakes.raw_client import request
from tests.fakes.running_balancer import balancing
from tests.fakes.runtime_server import CHAT, SSE, RuntimeServer, event
from tests.fakes.scripted_instance import (
    END,
    Close,
    ScriptedInstance,
    Send,
    Stall,
    Turn,
    Wait,
    chunk,
)

pytestmark = pytest.mark.both_sinks
BROKEN = {"error"}


@pytest.fixture(params=["vllm", "llama-server"])
def server(request: pytest.FixtureRequest) -> RuntimeServer:
    return RuntimeServer("m", runtime=request.param)


def opening(server: RuntimeServer) -> Send:
    return Send(SSE + chunk(event(server._chunk("/v1/chat/completions", CHAT, {"content": "Hel"}, None))))


async def test_errors_keep_their_status_and_take_ollamas_shape(server: RuntimeServer) -> None:
    server.play(Send(server.error(400, "the prompt is too long", "BadRequestError")))
    async with server.running(), balancing(server) as running:
        answer = await running.ask("/api/chat", CHAT)

    assert (answer.status, answer.json) == (400, {"error": "the prompt is too long"})


async def test_an_error_before_the_first_token_is_an_error_answer(server: RuntimeServer) -> None:
    told = server.error_body(500, "it broke", "InternalServerError")
    server.play(Send(SSE + chunk(event(told)) + chunk(event(b"[DONE]")) + END))
    async with server.running(), balancing(server) as running:
        answer = await running.ask("/api/chat", CHAT)

    assert (answer.status, answer.json) == (500, {"error": "it broke"})


async def test_an_error_in_a_stream_is_its_last_record(server: RuntimeServer) -> None:
    told = server.error_body(500, "it broke", "InternalServerError")
    server.play(opening(server), Turn(), Send(chunk(event(told)) + chunk(event(b"[DONE]")) + END))
    async with server.running(), balancing(server) as running:
        answer = await running.ask("/api/chat", CHAT)
        (finished,) = running.logged("request_finished")

    assert [set(each) & BROKEN for each in answer.records] == [set(), BROKEN]
    assert finished["outcome"] == "error_record"


@pytest.mark.parametrize("end", [(Send(END),), (Close(),)], ids=["ended", "closed"])
@pytest.mark.parametrize("reason", [None, "stop"])
async def test_a_stream_that_breaks_off_never_looks_done(
    server: RuntimeServer, end: tuple[Any, ...], reason: str | None
) -> None:
    more = [Send(chunk(event(server._chunk("/v1/chat/completions", CHAT, {}, reason))))] if reason else []
    server.play(opening(server), Turn(), *more, *end)
    async with server.running(), balancing(server) as running:
        answer = await running.ask("/api/chat", CHAT)
        (finished,) = running.logged("request_finished")

    assert not answer.whole
    assert "error" in answer.records[-1]
    assert not any(each.get("done") for each in answer.records)
    assert finished["outcome"] in {"unfinished", "truncated"}


async def test_a_stream_that_fails_before_its_first_token_is_tried_elsewhere() -> None:
    failing, sound = RuntimeServer("m"), ScriptedInstance("m")
    failing.otherwise = lambda _request: (Send(SSE), Turn(), Close())
    async with (
        failing.running(),
        sound.running(),
        balancing(failing, sound, strategy="round_robin") as running,
    ):
        answers = [await running.ask("/api/chat", CHAT) for _ in range(3)]

    assert {each.status for each in answers} == {200}
    assert {each.header("x-balancer-instance") for each in answers} == {"b"}
    assert len(failing.requests) > 0


async def test_tokens_arrive_as_they_come(server: RuntimeServer) -> None:
    rest = asyncio.Event()
    last = server._chunk("/v1/chat/completions", CHAT, {}, "stop")
    server.play(opening(server), Wait(rest), Send(chunk(event(last)) + chunk(event(b"[DONE]")) + END))
    async with server.running(), balancing(server) as running, running.client() as client:
        await client.send(request("/api/chat", CHAT))
        head = await client.head()
        first = await client.chunk()
        rest.set()
        second = await client.chunk()

    assert head.status == 200
    assert first is not None
    assert json.loads(first)["message"]["content"] == "Hel"
    assert second is not None
    assert json.loads(second)["done"] is True


async def test_who_leaves_cancels_it_at_the_runtime(server: RuntimeServer) -> None:
    server.play(opening(server), Stall())
    async with server.running(), balancing(server) as running:
        async with running.client() as client:
            await client.send(request("/api/chat", CHAT))
            await client.head()
            await client.chunk()
        seen = await server.seen(1)
        async with asyncio.timeout(20):
            await seen.connection.closed.wait()
