"""The fast sink alone: what a switch of the path, a half-closed client and a defect of ours do to it."""

import asyncio
import contextlib
from typing import Any

import pytest

from balancer.forwarding.downstream import ClientRequest, Sink
from balancer.frontend import listener
from balancer.settings import Settings
from tests.fakes.raw_client import RawClient, request
from tests.fakes.running_balancer import Running, balancing, until
from tests.fakes.scripted_instance import DONE, END, ScriptedInstance, Send, Stall, Step, Wait, chunk, head

GENERATE = {"model": "m", "prompt": "hi"}
ASKED = request("/api/generate", GENERATE)
STREAMED = head(200, "Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
LINE = b'{"model":"m","response":"a","done":false}\n'
PIECE = b'{"response":"%b","done":false}\n' % (b"x" * 32_000)


@pytest.fixture
def sinks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of sinks that were made, in their order."""
    made: list[str] = []
    for name in ("FastSink", "PlainSink"):
        kind = getattr(listener, name)

        def make(*given: Any, kind: Any = kind, **more: Any) -> Any:
            made.append(kind.__name__)
            return kind(*given, **more)

        monkeypatch.setattr(listener, name, make)
    return made


def switch(running: Running, *, fast: bool) -> None:
    values = running.balancer.settings.model_dump(mode="json", by_alias=True)
    running.balancer.apply(Settings.model_validate({**values, "fast_path": fast}))


def gated(go_on: asyncio.Event) -> tuple[Step, ...]:
    return (Send(STREAMED + chunk(LINE)), Wait(go_on), Send(chunk(LINE)), Send(chunk(DONE) + END))


async def test_the_path_may_be_switched_while_requests_run(sinks: list[str]) -> None:
    """What runs goes on as it began; the next request on the same connection goes the other way."""
    async with (
        ScriptedInstance().running() as one,
        balancing(one, each={"slots": 4}) as running,
        running.client() as first,
        running.client() as second,
    ):

        async def begin(client: RawClient) -> asyncio.Event:
            go_on = asyncio.Event()
            one.play(*gated(go_on))
            await client.send(ASKED)
            await client.head()
            assert await client.chunk() == LINE
            return go_on

        async def end(client: RawClient, go_on: asyncio.Event) -> None:
            go_on.set()
            assert [await client.chunk() for _ in range(3)] == [LINE, DONE, None]

        for fast, kind in ((False, "PlainSink"), (True, "FastSink"), (False, "PlainSink")):
            before = await begin(first)
            switch(running, fast=fast)
            after = await begin(second)
            assert sinks[-1] == kind
            await end(second, after)
            await end(first, before)

        assert sinks == ["FastSink", "PlainSink", "PlainSink", "FastSink", "FastSink", "PlainSink"]


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        (ASKED, "FastSink"),
        (request("/api/generate", GENERATE, version="1.0"), "PlainSink"),
        (request("/api/generate", GENERATE, "Connection: Upgrade", "Upgrade: h2c"), "PlainSink"),
        (request("/api/version", None, method="GET"), "PlainSink"),
    ],
)
async def test_posts_of_http_1_1_go_the_fast_way_and_no_others(
    sinks: list[str], asked: bytes, kind: str
) -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running, running.client() as client:
        await client.send(asked)
        assert (await client.answer()).status == 200

    assert sinks == [kind]


async def test_client_that_closes_its_half_with_much_unread_has_left() -> None:
    go_on = asyncio.Event()
    further = (Wait(go_on), *[Send(chunk(PIECE))] * 20, Stall())
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.play(Send(STREAMED), *[Send(chunk(PIECE))] * 300, *further)
        async with running.client() as client:
            client.pause()
            await client.send(ASKED)
            seen = await one.seen(1)
            await until(lambda: running.balancer.stream_memory.held_bytes > 100 * len(PIECE))
            client.writer.write_eof()
            (open_connection,) = running.balancer.listener._web.connections  # type: ignore[union-attr]
            await until(lambda: open_connection.transport is None or open_connection.transport.is_closing())
            go_on.set()

            await until(seen.connection.closed.is_set)
            await until(lambda: running.idle)

        assert [each["outcome"] for each in running.logged("request_finished")] == ["cancelled"]
        assert running.balancer.stream_memory.held_bytes == 0


@pytest.mark.parametrize("begun", [False, True])
async def test_defect_of_ours_ends_its_connection_and_no_other(
    monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """Where not even the pipeline has caught it."""
    async with ScriptedInstance().running() as one, balancing(one) as running, running.client() as other:
        handle = running.balancer.pipeline.handle

        async def fail(asked: ClientRequest, sink: Sink) -> None:
            if begun:
                await sink.start(200, (), content_length=10)
                await sink.write(b"12345")
            raise ValueError

        monkeypatch.setattr(running.balancer.pipeline, "handle", fail)
        async with running.client() as client:
            await client.send(ASKED * 2)
            came = await client.rest()
            assert came.count(b"HTTP/1.1") == begun
            assert came.endswith(b"12345" if begun else b"")
        monkeypatch.setattr(running.balancer.pipeline, "handle", handle)

        await other.send(ASKED)
        assert (await other.answer()).status == 200


async def test_a_stop_does_not_wait_for_a_client_that_does_not_read() -> None:
    limits = {"stop_seconds": 0.05, "stream_buffer_bytes": "128MiB"}
    async with (
        ScriptedInstance().running() as one,
        balancing(one, each={"slots": 2}, limits=limits) as running,
    ):
        one.play(Send(STREAMED), *[Send(chunk(PIECE))] * 300, Stall())
        one.play(Send(STREAMED), *[Send(chunk(PIECE))] * 300, Send(chunk(DONE) + END))
        async with contextlib.AsyncExitStack() as stack:
            for count in (1, 2):
                client = await stack.enter_async_context(running.client())
                client.pause()
                await client.send(ASKED)
                await one.seen(count)
            await until(lambda: len(running.balancer.stream_memory._held) == 2)
            await until(lambda: len(running.balancer.dispatcher.leases) == 1)

            async with asyncio.timeout(20):
                await running.balancer._stop()
            await until(lambda: running.idle)

        assert running.balancer.stream_memory.held_bytes == 0
