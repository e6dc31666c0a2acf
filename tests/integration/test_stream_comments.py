"""Streams that wait get comments, and behind them what they would have got without; nobody else gets any."""

import asyncio
from typing import Any

import pytest

from tests.fakes.commented_streams import (
    ANSWER,
    CHAT,
    COMMENT,
    ENDS,
    EVENTS,
    ONE_SLOT,
    PIECE,
    QUICK_SECONDS,
    STREAMED,
    after_comments,
    comment_often,
    comments,
    finished,
    held,
)
from tests.fakes.raw_client import request
from tests.fakes.running_balancer import balancing, until
from tests.fakes.scripted_instance import (
    Close,
    ScriptedInstance,
    Send,
    Wait,
    chunked,
    head,
    whole,
)

pytestmark = pytest.mark.both_sinks


@pytest.mark.parametrize("path", ENDS)
async def test_queued_stream_gets_comments_and_then_its_answer_byte_for_byte(path: str) -> None:
    async with ScriptedInstance().running() as one, balancing(one, each=ONE_SLOT) as running:
        comment_often(running)
        async with held(one, running) as go_on, running.client() as client:
            one.play(Send(chunked(PIECE, ENDS[path], content_type="text/event-stream")))
            await client.send(request(path, STREAMED, "X-Request-ID: run-1"))
            told = await client.head()
            assert [await client.chunk() for _ in range(3)] == [COMMENT] * 3
            go_on.set()

            assert await after_comments(client) == (PIECE + ENDS[path], True)

            await client.send(request("/api/version", None, method="GET"))
            assert (await client.answer()).status == 200

    names = [name.casefold() for name, _ in told.headers]
    assert told.header("cache-control") == "no-cache"
    assert told.header("x-request-id") == "run-1"
    assert len(told.header("x-balancer-request") or "") == 32
    assert told.header("transfer-encoding") == "chunked"
    assert not [name for name in names if name.startswith("x-balancer-") and name != "x-balancer-request"]
    event = finished(running, path)
    assert (event["status"], event["outcome"]) == (200, "ok")
    assert event["answer_bytes"] == len(PIECE + ENDS[path])
    assert event["comments"] >= 3
    assert QUICK_SECONDS < event["queued_seconds"] < event["ttft_seconds"]


async def test_browser_of_an_allowed_origin_may_read_the_comments() -> None:
    origin = "http://elsewhere.example"
    async with ScriptedInstance().running() as one, balancing(one, cors_origins=[origin]) as running:
        comment_often(running)
        go_on = asyncio.Event()
        one.play(Wait(go_on), ANSWER)
        async with running.client() as client:
            page = (f"Origin: {origin}", "Content-Type: application/json")
            await client.send(request(CHAT, STREAMED, *page))
            told = await client.head()
            go_on.set()
            assert (await after_comments(client))[1]

    assert told.header("access-control-allow-origin") == origin


async def test_stream_gets_comments_while_its_prompt_is_evaluated_and_between_tries() -> None:
    """An instance that fails it meanwhile is no reason to give up: a comment is no byte of an answer."""
    async with (
        ScriptedInstance().running() as one,
        ScriptedInstance().running() as two,
        balancing(one, two, strategy="round_robin") as running,
    ):
        comment_often(running)
        dies, answers = asyncio.Event(), asyncio.Event()
        scripts = [(Wait(dies), Close()), (Wait(answers), ANSWER)]
        one.otherwise = two.otherwise = lambda _seen: scripts.pop(0)
        async with running.client() as client:
            await client.send(request(CHAT, STREAMED))
            await until(lambda: one.requests or two.requests)
            await comments(client)
            dies.set()
            await until(lambda: one.requests and two.requests)
            assert [await client.chunk() for _ in range(2)] == [COMMENT] * 2
            answers.set()

            assert await after_comments(client) == (b"".join(EVENTS), True)

    event = finished(running)
    assert (event["attempts"], event["outcome"], event["status"]) == (2, "ok", 200)


async def test_no_comment_is_written_into_an_answer_that_has_begun() -> None:
    """Were there one, it would come before the third of another stream that began to wait at that time."""
    async with ScriptedInstance().running() as one, balancing(one, each={"slots": 2}) as running:
        comment_often(running)
        go_on, both = asyncio.Event(), asyncio.Event()
        begun = head(200, "Content-Type: text/event-stream") + PIECE
        one.play(Wait(go_on), Send(begun), Wait(both), Send(ENDS[CHAT]), Close())
        one.play(Wait(both), ANSWER)
        async with running.client() as client, running.client() as other:
            await client.send(request(CHAT, STREAMED))
            await comments(client)
            go_on.set()
            while await client.chunk() != PIECE:
                pass
            await other.send(request(CHAT, STREAMED))
            await comments(other, 3)
            both.set()

            assert await client.chunk() == ENDS[CHAT]
            assert (await after_comments(other))[1]


UNCOMMENTED = {
    "whole": (CHAT, {**STREAMED, "stream": False}),
    "native": ("/api/chat", STREAMED),
    "anthropic": ("/v1/messages", {**STREAMED, "max_tokens": 9}),
    "embeddings": ("/v1/embeddings", STREAMED),
}


@pytest.mark.parametrize("name", UNCOMMENTED)
async def test_who_asks_for_no_such_stream_gets_no_comment(name: str) -> None:
    path, body = UNCOMMENTED[name]
    async with ScriptedInstance().running() as one, balancing(one, each={"slots": 2}) as running:
        comment_often(running)
        go_on = asyncio.Event()
        one.play(Wait(go_on), Send(whole(b'{"whole":1}')))
        async with running.client() as client, running.client() as other:
            await client.send(request(path, body))
            await one.seen(1)
            one.play(Wait(go_on), ANSWER)
            await other.send(request(CHAT, STREAMED))
            await comments(other, 3)
            go_on.set()

            answer = await client.answer()
            assert (answer.body, answer.header("content-length")) == (b'{"whole":1}', "11")
            assert (await after_comments(other))[1]


async def test_request_that_is_not_admitted_is_told_by_its_status() -> None:
    limits = {"queue_requests": 1}
    async with ScriptedInstance().running() as one, balancing(one, each=ONE_SLOT, limits=limits) as running:
        comment_often(running)
        async with held(one, running), running.client() as client:
            one.play(ANSWER)
            await client.send(request(CHAT, STREAMED))
            await comments(client)

            full = await running.ask(CHAT, STREAMED)
            malformed = await running.ask(CHAT, b"{")
            unknown = await running.ask(CHAT, {**STREAMED, "model": "other"})

    assert [each.status for each in (full, malformed, unknown)] == [503, 400, 404]
    assert full.header("retry-after") is not None


async def test_model_that_is_looked_for_once_more_in_vain_is_told_404() -> None:
    """Once the lists are old they are asked for anew, here in vain, which takes many comments' time."""
    health = {"interval_seconds": 30}
    statuses: set[int] = set()
    async with ScriptedInstance().running() as one, balancing(one, health=health) as running:
        comment_often(running)
        one.hanging = True
        async with asyncio.timeout(20):
            while not any(each["duration_seconds"] > 0.5 for each in running.logged("request_finished")):
                statuses.add((await running.ask(CHAT, {**STREAMED, "model": "other"})).status)
                await asyncio.sleep(0.05)

    assert statuses == {404}


async def raw(one: ScriptedInstance, sent: bytes, seconds: float | None) -> bytes:
    """All that comes on the wire for a request whose answer is there at once."""
    limits = {"queue_comment_seconds": seconds}
    async with balancing(one, limits=limits) as running, running.client() as client:
        await client.send(sent)
        came = await client.rest()
    lines = came.split(b"\r\n")
    changing = (b"Date: ", b"X-Balancer-Request: ", b"X-Balancer-Queue-Ms: ")
    return b"\r\n".join(line for line in lines if not line.startswith(changing))


@pytest.mark.parametrize(
    "answer",
    [ANSWER, Send(whole(b'{"error":"no"}', status=400)), Send(whole(b"{}")), Close()],
    ids=["stream", "error", "whole", "failure"],
)
async def test_answer_that_comes_before_the_first_comment_has_the_same_bytes_as_without(answer: Any) -> None:
    sent = request(CHAT, STREAMED, "X-Request-ID: run-1", "Connection: close")
    async with ScriptedInstance().running() as one:
        one.play(answer)
        off = await raw(one, sent, None)
        one.play(answer)
        on = await raw(one, sent, 3600)

    assert off.startswith(b"HTTP/1.1 ")
    assert off == on


async def test_client_of_http_1_0_gets_comments_without_chunks() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        comment_often(running)
        go_on = asyncio.Event()
        one.play(Wait(go_on), ANSWER)
        async with running.client() as client:
            await client.send(request(CHAT, STREAMED, version="1.0"))
            told = await client.head()
            go_on.set()
            came = await client.rest()

    assert told.header("transfer-encoding") is None
    answer = b"".join(EVENTS)
    assert came.endswith(COMMENT + answer)
    assert came == COMMENT * came.count(COMMENT) + answer


async def test_setting_takes_effect_on_the_next_request() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        balancer = running.balancer
        assert balancer.pipeline.policy.queue_comment_seconds is None
        values = balancer.settings.model_dump(mode="json", by_alias=True)
        values["limits"]["queue_comment_seconds"] = 1
        balancer.apply(type(balancer.settings).model_validate(values))
        go_on = asyncio.Event()
        one.play(Wait(go_on), ANSWER)
        async with running.client() as client:
            await client.send(request(CHAT, STREAMED))
            await comments(client, 1)
            go_on.set()
            assert (await after_comments(client))[1]
