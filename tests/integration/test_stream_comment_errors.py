"""What would have been an error with a status is told behind comments as an event, and never looks whole."""

import asyncio
import json
import math
from typing import Any

import pytest

from tests.fakes.commented_streams import (
    CHAT,
    ONE_SLOT,
    PIECE,
    STREAMED,
    after_comments,
    comment_often,
    comments,
    error_in,
    finished,
    held,
)
from tests.fakes.raw_client import request
from tests.fakes.running_balancer import balancing
from tests.fakes.scripted_instance import (
    Close,
    ScriptedInstance,
    Send,
    Wait,
    head,
    whole,
)

pytestmark = pytest.mark.both_sinks


async def test_stream_that_waited_too_long_in_the_queue_is_told_so_in_an_event() -> None:
    async with ScriptedInstance().running() as one, balancing(one, each=ONE_SLOT) as running:
        comment_often(running)
        async with held(one, running), running.client() as client:
            await client.send(request(CHAT, STREAMED))
            await comments(client)
            running.balancer.dispatcher._expire(math.inf)
            event, whole_body = await after_comments(client)

            assert not whole_body
            assert error_in(event)["message"].startswith("no slot became free")
            assert error_in(event)["type"] == "api_error"

        assert len(one.requests) == 1
    logged = finished(running)
    assert (logged["status"], logged["outcome"]) == (504, "deadline")
    assert "ttft_seconds" not in logged


async def test_stream_that_waits_while_the_balancer_is_stopped_is_told_so_in_an_event() -> None:
    async with ScriptedInstance().running() as one, balancing(one, each=ONE_SLOT) as running:
        comment_often(running)
        async with held(one, running), running.client() as client:
            await client.send(request(CHAT, STREAMED))
            await comments(client)
            running.balancer.dispatcher.stop()
            event, whole_body = await after_comments(client)

    assert not whole_body
    assert "being stopped" in error_in(event)["message"]


async def test_failure_of_every_instance_is_told_in_an_event() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        comment_often(running)
        dies = asyncio.Event()
        one.play(Wait(dies), Close())
        async with running.client() as client:
            await client.send(request(CHAT, STREAMED))
            await comments(client)
            dies.set()
            event, whole_body = await after_comments(client)

    assert not whole_body
    assert error_in(event)["type"] == "api_error"
    assert finished(running)["status"] == 502


OWN = {"message": "no such tool", "type": "invalid_request_error", "param": None, "code": "tool"}
UNTYPED = {**OWN, "code": None}
LARGE = '{"error":{"message":"' + "x" * 278 + "…"


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (json.dumps({"error": OWN}, indent=2).encode(), OWN),
        (b'{"error":"no such tool"}', UNTYPED),
        (b"no such tool", UNTYPED),
        (b"", {**UNTYPED, "message": "the instance answered with status 400"}),
        (b"x" * 200_000, {**UNTYPED, "message": "x" * 299 + "…"}),
        (b'{"error":{"message":"%b"}}' % (b"x" * 200_000), {**UNTYPED, "message": LARGE}),
    ],
)
async def test_error_answer_of_an_instance_is_told_in_an_event(sent: bytes, told: dict[str, Any]) -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        comment_often(running)
        go_on = asyncio.Event()
        one.play(Wait(go_on), Send(whole(sent, status=400)))
        async with running.client() as client:
            await client.send(request(CHAT, STREAMED))
            await comments(client)
            go_on.set()
            event, whole_body = await after_comments(client)

    assert not whole_body
    assert error_in(event) == told
    logged = finished(running)
    assert (logged["status"], logged["outcome"]) == (400, "rejected")


async def test_error_answer_that_breaks_off_is_told_in_an_event() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        comment_often(running)
        go_on = asyncio.Event()
        half = head(400, "Content-Type: application/json", "Content-Length: 300000") + b'{"error":"hal'
        one.play(Wait(go_on), Send(half + b"f" * 100_000), Close())
        async with running.client() as client:
            await client.send(request(CHAT, STREAMED))
            await comments(client)
            go_on.set()
            event, whole_body = await after_comments(client)

    assert not whole_body
    assert error_in(event)["message"].startswith('{"error":"half')


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (whole(b'{"object":"chat.completion"}'), "no stream of events"),
        (head(204), "no stream of events"),
        (
            head(200, "Content-Type: text/event-stream", "Content-Encoding: gzip", "Content-Length: 3")
            + b"abc",
            "compressed",
        ),
    ],
)
async def test_answer_that_cannot_follow_comments_is_told_as_an_error(sent: bytes, told: str) -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        comment_often(running)
        go_on = asyncio.Event()
        one.play(Wait(go_on), Send(sent))
        async with running.client() as client:
            await client.send(request(CHAT, STREAMED))
            await comments(client)
            go_on.set()
            event, whole_body = await after_comments(client)

    assert not whole_body
    assert told in error_in(event)["message"]
    assert (finished(running)["status"], finished(running)["outcome"]) == (502, "bad_response")


async def test_stream_that_breaks_off_behind_comments_ends_as_one_without() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        comment_often(running)
        go_on = asyncio.Event()
        cut = head(200, "Content-Type: text/event-stream", "Content-Length: 1000") + PIECE
        one.play(Wait(go_on), Send(cut), Close())
        async with running.client() as client:
            await client.send(request(CHAT, STREAMED))
            await comments(client)
            go_on.set()
            came, whole_body = await after_comments(client)

    assert not whole_body
    assert came.startswith(PIECE)
    assert error_in(came.removeprefix(PIECE))
    assert finished(running)["outcome"] == "truncated"
