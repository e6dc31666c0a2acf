"""Clients that leave while they get comments, and clients that do not read them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from balancer.clock import SystemClock
from balancer.forwarding.comments import commented
from balancer.forwarding.downstream import ClientRequest, Sink
from balancer.frontend.fast_sink import FastSink
from balancer.frontend.listener import Listener
from balancer.settings import Address, LimitsSettings
from balancer.upstream.stream_memory import StreamMemory
from tests.fakes import running_balancer
from tests.fakes.commented_streams import (
    CHAT,
    ENDS,
    EVERY_WAY,
    ONE_SLOT,
    STREAMED,
    after_comments,
    comment_often,
    comments,
    finished,
    held,
    leave,
)
from tests.fakes.raw_client import RawClient, connected, request
from tests.fakes.running_balancer import balancing, until
from tests.fakes.scripted_instance import (
    ScriptedInstance,
    Stall,
)

pytestmark = pytest.mark.both_sinks


@pytest.mark.parametrize("way", EVERY_WAY)
async def test_leaving_the_queue_after_comments_takes_the_request_out(way: str) -> None:
    async with ScriptedInstance().running() as one, balancing(one, each=ONE_SLOT) as running:
        comment_often(running)
        async with held(one, running), running.client() as client:
            await client.send(request(CHAT, STREAMED))
            await comments(client)
            assert len(running.balancer.queue) == 1

            leave(client, way)

            await until(lambda: not running.balancer.queue)
        assert len(one.requests) == 1
    assert (finished(running)["status"], finished(running)["outcome"]) == (499, "cancelled")


@pytest.mark.parametrize("way", EVERY_WAY)
async def test_leaving_an_instance_after_comments_closes_the_way_to_it(way: str) -> None:
    async with ScriptedInstance().running() as one, balancing(one, each=ONE_SLOT) as running:
        comment_often(running)
        one.play(Stall())
        async with running.client() as client:
            await client.send(request(CHAT, STREAMED))
            seen = await one.seen(1)
            await comments(client)

            leave(client, way)

            await until(seen.connection.closed.is_set)
    assert finished(running)["outcome"] == "cancelled"


class _Waiting:
    """Serves by commenting at once and largely, until it may answer, or else gives up. `transport` is the
    client's; while `slack`, nothing is said that would have to stand in its buffer."""

    def __init__(self, *, answers: bool = True, slack: bool = False, every_seconds: float = 0) -> None:
        self._answers = answers
        self._every_seconds = every_seconds
        self.slack = slack
        self.transport: Any = None
        self.outlets: list[object] = []
        self.said = 0
        self.go_on = asyncio.Event()
        self.served = 0
        self.ended = 0

    async def handle(self, request: ClientRequest, sink: Sink) -> None:
        del request
        fast = isinstance(sink, FastSink)
        # The transport of either sink is its own business, and what is looked at here.
        self.transport = sink._transport if fast else sink._request.transport  # type: ignore[attr-defined]
        try:
            async with self._commented(sink) as front:
                await self.go_on.wait()
                if self._answers:
                    await self._answer(front)
                elif self.said:
                    front.abort()
        finally:
            self.ended += 1

    def _commented(self, sink: Sink) -> AbstractAsyncContextManager[Sink]:
        return commented(sink, every_seconds=self._every_seconds, own_headers=tuple, comment=self._say)

    async def _answer(self, front: Sink) -> None:
        self.outlets.append(front.outlet(lambda _error: None))
        await front.start(200, (("Content-Type", "text/event-stream"),), content_length=None)
        self.outlets.append(front.outlet(lambda _error: None))
        await front.write(ENDS[CHAT])
        await front.finish()
        self.served += 1

    def _say(self) -> str | None:
        if self.slack and self.transport.get_write_buffer_size():
            return None
        self.said += 1
        return "x" * 16384


@asynccontextmanager
async def listening(handler: _Waiting) -> AsyncIterator[RawClient]:
    fast = bool(running_balancer.SETTINGS["fast_path"])
    listener = Listener(
        address=Address("127.0.0.1", 0),
        limits=LimitsSettings(),
        fast=fast,
        memory=StreamMemory(1 << 20),
        handler=handler,
        clock=SystemClock(),
    )
    await listener.open()
    try:
        host, _, port = listener.url.removeprefix("http://").partition(":")
        async with connected(host, int(port)) as client:
            yield client
    finally:
        await listener.close()


async def settled(value: Callable[[], int]) -> int:
    """A number that changes no more, though there were many turns of the loop in which it could."""
    seen, same = value(), 0

    def rests() -> bool:
        nonlocal seen, same
        same = same + 1 if value() == seen else 0
        seen = value()
        return same == 50

    await until(rests, "an end of comments to a client that reads none")
    return seen


async def test_client_that_reads_no_comments_is_written_no_more_until_it_does() -> None:
    waiting = _Waiting()
    async with listening(waiting) as client:
        client.pause()
        await client.send(request(CHAT, STREAMED))
        await until(lambda: waiting.said > 2)
        unread = await settled(lambda: waiting.said)

        client.resume()
        await client.head()
        await until(lambda: waiting.said > unread)
        waiting.go_on.set()
        last = b""
        while (chunk := await client.chunk()) is not None:
            last = chunk

    assert last == ENDS[CHAT]
    assert waiting.served == 1
    # As without comments, only the fast sink takes a stream without waiting, and no sink before its begin.
    assert [each is not None for each in waiting.outlets] == [
        False,
        bool(running_balancer.SETTINGS["fast_path"]),
    ]


@pytest.mark.parametrize(("way", "slack"), [("reset", False), ("reset", True), ("half-close", True)])
async def test_client_that_leaves_comments_unread_and_goes_ends_its_request(way: str, *, slack: bool) -> None:
    """A connection that is closed while it holds what nobody reads is lost late, so it is cut."""
    waiting = _Waiting(slack=slack)
    async with listening(waiting) as client:
        client.pause()
        await client.send(request(CHAT, STREAMED))
        await until(lambda: waiting.said > 2)
        await settled(lambda: waiting.said)
        leave(client, way)
        await until(waiting.transport.is_closing)
        waiting.slack = False
        await until(lambda: waiting.ended, "the end of the request")

    assert waiting.served == 0


async def test_request_that_is_given_up_after_comments_is_cut() -> None:
    waiting = _Waiting(answers=False)
    async with listening(waiting) as client:
        await client.send(request(CHAT, STREAMED))
        await client.head()
        waiting.go_on.set()
        assert not (await after_comments(client))[1]
        await until(lambda: waiting.ended)


async def test_request_that_is_given_up_long_before_its_first_comment_has_ended_then() -> None:
    waiting = _Waiting(answers=False, every_seconds=3600)
    async with listening(waiting) as client:
        await client.send(request(CHAT, STREAMED))
        waiting.go_on.set()
        assert await client.rest() == b""
        await until(lambda: waiting.ended)

    assert waiting.said == 0
