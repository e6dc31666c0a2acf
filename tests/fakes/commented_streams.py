"""Streams that wait and get comments: what to ask, and how to read what comes."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from tests.fakes.raw_client import Cut, RawClient, request
from tests.fakes.running_balancer import Running
from tests.fakes.scripted_instance import (
    ScriptedInstance,
    Send,
    Wait,
    chunked,
)

COMMENT = b": waiting\n\n"
QUICK_SECONDS = 0.02
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
STREAMED = {"model": "m", "messages": [], "prompt": "hi", "input": "hi", "stream": True}
PIECE = b'data: {"id":"1","object":"chat.completion.chunk","model":"m","choices":[]}\n\n'
ENDS = {
    CHAT: b"data: [DONE]\n\n",
    COMPLETIONS: b"data: [DONE]\n\n",
    RESPONSES: b'event: response.completed\ndata: {"type":"response.completed"}\n\n',
}
EVENTS = (PIECE, ENDS[CHAT])
ANSWER = Send(chunked(*EVENTS, content_type="text/event-stream"))
BLOCKER = request("/api/generate", {"model": "m", "prompt": "first"})
BLOCKED = Send(chunked(b'{"model":"m","done":true}\n'))
ONE_SLOT = {"slots": 1}
EVERY_WAY = ("close", "reset", "half-close")


def comment_often(running: Running, seconds: float = QUICK_SECONDS) -> None:
    """As `limits.queue_comment_seconds`, which allows no less than a second."""
    pipeline = running.balancer.pipeline
    pipeline.policy = replace(pipeline.policy, queue_comment_seconds=seconds)


async def comments(client: RawClient, count: int = 2) -> None:
    """The head, and so many comments."""
    told = await client.head()
    assert (told.status, told.header("content-type")) == (200, "text/event-stream")
    assert told.header("x-balancer-instance") is None
    assert [await client.chunk() for _ in range(count)] == [COMMENT] * count


async def after_comments(client: RawClient) -> tuple[bytes, bool]:
    """What comes behind the comments, and whether the body ended properly."""
    came: list[bytes] = []
    try:
        while (chunk := await client.chunk()) is not None:
            came.append(chunk)
    except Cut:
        return _behind(came), False
    return _behind(came), True


def _behind(came: list[bytes]) -> bytes:
    while came and came[0] == COMMENT:
        came.pop(0)
    assert COMMENT not in came
    return b"".join(came)


def error_in(event: bytes) -> dict[str, Any]:
    """The error of a stream that has nothing but one."""
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2
    told: dict[str, Any] = json.loads(event.removeprefix(b"data: "))["error"]
    assert set(told) == {"message", "type", "param", "code"}
    return told


def finished(running: Running, route: str = CHAT) -> dict[str, Any]:
    (event,) = [each for each in running.logged("request_finished") if each["route"] == route]
    return event


@asynccontextmanager
async def held(one: ScriptedInstance, running: Running) -> AsyncIterator[asyncio.Event]:
    """The only slot of an instance, taken until the event is set."""
    go_on = asyncio.Event()
    one.play(Wait(go_on), BLOCKED)
    async with running.client() as client:
        await client.send(BLOCKER)
        await one.seen(1)
        yield go_on
        go_on.set()
        assert (await client.answer()).whole


def leave(client: RawClient, way: str) -> None:
    """End a connection in one of these ways."""
    match way:
        case "close":
            client.writer.close()
        case "reset":
            client.reset()
        case _:
            client.writer.write_eof()
